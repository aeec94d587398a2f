"""What tasks of every step share on the device: the KV cache, and the states of recurrent layers.

The KV cache is only as long as it has to be. It grows in blocks, between steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from gguf_moe.graph.task import Buffer, Graph
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.memory import row_size

BLOCK = 4096
"""Positions that come together."""
STAGING = 1 << 24
"""Bytes that are read or written at a time."""
CACHE = "cache_"
SHARED = (CACHE, "conv_states_", "ssm_states_")
"""What the names of these buffers begin with."""


class KvCaches:
    """The buffers that tasks of every step share. `addresses`: where they are on the device, by name.

    Those with a row for each of n_ctx positions begin with one block.
    """

    def __init__(self, device: Device, graph: Graph, n_ctx: int):
        self.n_ctx = n_ctx
        self._device = device
        self._stream = device.stream()
        self._staged: np.ndarray | None = None
        buffers = [buffer for buffer in graph.buffers().values() if buffer.name.startswith(SHARED)]
        self._rows = {b.name: min(n_ctx, BLOCK) for b in buffers if _grows(b, n_ctx)}
        """Positions that each buffer which grows has room for."""
        self._row_sizes = {buffer.name: row_size(buffer) for buffer in buffers}
        self.addresses = {
            buffer.name: device.allocate(row_size(buffer) * self._rows.get(buffer.name, buffer.rows))
            for buffer in buffers
        }

    @property
    def n_positions(self) -> int:
        """How many positions there is room for."""
        return min(self._rows.values(), default=self.n_ctx)

    def bytes_to_grow(self, n: int) -> int:
        """Bytes of device memory that room for n positions takes more, one old buffer beside its new one."""
        n_new = self._rounded(n)
        more = sum(max(0, n_new - rows) * self._row_sizes[name] for name, rows in self._rows.items())
        return more + max(self._row_sizes[name] * rows for name, rows in self._rows.items()) if more else 0

    def grow(self, n: int, moved: dict[int, int]) -> None:
        """Make room for n positions, at most n_ctx; between steps only. `moved` gets old and new addresses.

        Raises OutOfMemoryError; then some buffers may have moved already, and nothing is lost.
        """
        n_new = self._rounded(n)
        for name, rows in self._rows.items():
            if rows >= n_new:
                continue
            old, size = self.addresses[name], self._row_sizes[name]
            new = self._device.allocate(n_new * size)
            self._device.copy(self._stream, new, old, rows * size)
            wait(self._device, self._stream)
            self._device.free(old)
            self._rows[name] = n_new
            self.addresses[name] = moved[old] = new

    def read(self, name: str, start: int, nbytes: int) -> np.ndarray:
        """Bytes of a buffer, u8 [nbytes]. Between steps only."""
        found = np.empty(nbytes, np.uint8)
        staging = self._staging()
        address = staging.__array_interface__["data"][0]
        for at in range(0, nbytes, STAGING):
            n = min(STAGING, nbytes - at)
            self._device.copy(self._stream, address, self.addresses[name] + start + at, n)
            wait(self._device, self._stream)
            found[at : at + n] = staging[:n]
        return found

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Give a buffer, which has room for them, other bytes, u8 [nbytes]. Between steps only."""
        staging = self._staging()
        address = staging.__array_interface__["data"][0]
        for at in range(0, data.nbytes, STAGING):
            n = min(STAGING, data.nbytes - at)
            staging[:n] = data[at : at + n]
            self._device.copy(self._stream, self.addresses[name] + start + at, address, n)
            wait(self._device, self._stream)

    def positions_of(self, name: str, nbytes: int) -> int:
        """How many positions must have room so that a buffer has so many bytes; 0 if it does not grow."""
        return -(-nbytes // self._row_sizes[name]) if name in self._rows else 0

    def _staging(self) -> np.ndarray:
        """Pinned memory for bytes on their way, u8 [STAGING]; made at the first call."""
        if self._staged is None:
            self._staged = self._device.pinned(STAGING)
        return self._staged

    def _rounded(self, n: int) -> int:
        return min(self.n_ctx, -(-n // BLOCK) * BLOCK)


def _grows(buffer: Buffer, n_ctx: int) -> bool:
    return buffer.name.startswith(CACHE) and buffer.rows == n_ctx


def move_addresses(arguments: Iterable[np.ndarray], moved: Mapping[int, int]) -> None:
    """Put new addresses in the place of old ones, in argument structs and the structs within them."""
    for struct in arguments:
        for name in struct.dtype.names or ():
            field = struct[name]
            if field.dtype.names:
                move_addresses([field], moved)
            elif field.dtype == np.int64 and int(field) in moved:
                struct[name] = moved[int(field)]
