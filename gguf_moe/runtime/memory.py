"""The memory of one context: every buffer of its graph, and the numbers that change from step to step."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gguf_moe.errors import OutOfMemoryError
from gguf_moe.graph.task import Buffer, Kind, Rows
from gguf_moe_kernels.activations import ActivationFormat

DTYPES: dict[Kind | ActivationFormat, type[np.generic]] = {
    Kind.F32: np.float32,
    Kind.F16: np.float16,
    Kind.I32: np.int32,
    Kind.I64: np.int64,
}
"""The elements of buffers that are not in blocks."""


class Addresses(Protocol):
    """Where kernels find buffers, and the numbers that change from step to step."""

    def address(self, buffer: Buffer) -> int:
        """Where a buffer lies."""

    @property
    def n_past_address(self) -> int:
        """Where the number of positions is that the KV cache holds, int64."""

    def rows_address(self, rows: Rows) -> int:
        """Where the step's number of rows is, int64."""


def row_size(buffer: Buffer) -> int:
    """Bytes of one row of a buffer."""
    return buffer.kind.row_size(buffer.cols)


class Memory:
    """Arrays for all buffers. The system gives pages on first use, so an unused context costs nothing."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._step = np.zeros(2 + len(Rows), np.int64)

    def __getitem__(self, name: str) -> np.ndarray:
        """A buffer's array: [rows, cols] of its element type, or u8 [rows, row_size] if it is quantized."""
        return self._arrays[name]

    def address(self, buffer: Buffer) -> int:
        """Where a buffer lies; it is made at the first call for it."""
        if buffer.name not in self._arrays:
            self._arrays[buffer.name] = _allocate(buffer)
        array = self._arrays[buffer.name]
        assert array.nbytes == buffer.rows * row_size(buffer), f"{buffer.name} has two sizes"
        return array.__array_interface__["data"][0]

    def set_step(self, n_past: int, n_tokens: int, n_outputs: int, n_places: int, number: int = 0) -> None:
        """The numbers of the coming step; `number` is which one it is."""
        self._step[:] = (n_past, n_tokens, n_outputs, n_places, number)

    @property
    def n_past_address(self) -> int:
        """Where the kernels read how many positions the KV cache holds."""
        return self._step.__array_interface__["data"][0]

    def rows_address(self, rows: Rows) -> int:
        """Where the kernels read the step's number of rows."""
        return self.n_past_address + 8 * (1 + list(Rows).index(rows))

    @property
    def number_address(self) -> int:
        """Where the kernels read which step it is."""
        return self.n_past_address + 8 * (1 + len(Rows))


def _allocate(buffer: Buffer) -> np.ndarray:
    try:
        if dtype := DTYPES.get(buffer.kind):
            return np.zeros((buffer.rows, buffer.cols), dtype)
        return np.zeros((buffer.rows, row_size(buffer)), np.uint8)
    except MemoryError:
        mib = buffer.rows * row_size(buffer) / 2**20
        raise OutOfMemoryError(
            f"cannot get {mib:.0f} MiB for {buffer.name} ({buffer.rows} rows); use a smaller context (--ctx)."
        ) from None
