"""What tasks of every step share on the device: the KV cache, and the states of recurrent layers.

The KV cache is only as long as it has to be. It grows in blocks, between steps, into memory that experts give
up: both are parts of one area, the cache in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from gguf_moe.graph.task import Buffer, Graph
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.memory import Layout
from gguf_moe.runtime.memory import row_size

BLOCK = 1024
"""Positions that come together."""
STAGING = 1 << 24
"""Bytes that are read or written at a time."""
CACHE = "cache_"
SHARED = (CACHE, "conv_states_", "ssm_states_")
"""What the names of these buffers begin with."""


class KvCaches:
    """The buffers that tasks of every step share. `addresses`: where they are on the device, by name.

    Those with a row for each of n_ctx positions grow. They lie one behind the other, at first with one block
    each in memory of their own, later (`enter`) where there is room for more.
    """

    def __init__(self, device: Device, graph: Graph, n_ctx: int):
        self.n_ctx = n_ctx
        self._device = device
        self._stream = device.stream()
        self._staged: np.ndarray | None = None
        buffers = [buffer for buffer in graph.buffers().values() if buffer.name.startswith(SHARED)]
        self._row_sizes = {buffer.name: row_size(buffer) for buffer in buffers}
        self._growing = [b.name for b in buffers if _grows(b, n_ctx)]
        self._rows = min(n_ctx, BLOCK) if self._growing else n_ctx
        """Positions that the buffers which grow have room for."""
        fixed = (buffer for buffer in buffers if buffer.name not in self._growing)
        self.addresses = {b.name: device.allocate(row_size(b) * b.rows) for b in fixed}
        self._own = device.allocate(self.nbytes(self._rows)) if self._growing else 0
        self.addresses |= self._laid_out(self._own)

    @property
    def n_positions(self) -> int:
        """How many positions there is room for."""
        return self._rows

    def nbytes(self, n: int) -> int:
        """Bytes of the area with room for n positions, in whole blocks."""
        return self._layout(self._rounded(n))[1]

    def leave(self) -> None:
        """Give its own memory back, if it has some: before a step was run, and `enter` must follow."""
        if self._own:
            self._device.free(self._own)
        self._own = 0

    def enter(self, address: int) -> dict[int, int]:
        """After `leave`: lie in a zeroed area from this address on. Returns old and new addresses."""
        return self._move_to(self._laid_out(address))

    def grow(self, n: int) -> dict[int, int]:
        """Make room for n positions, at most n_ctx, between steps; the area must have nbytes(n).

        Returns old and new addresses.
        """
        old_rows, self._rows = self._rows, self._rounded(n)
        places = self._laid_out(self.addresses[self._growing[0]])
        # Each moves back, so the last one goes first, and its end.
        for name in reversed(self._growing):
            size = self._row_sizes[name]
            self._move_back(self.addresses[name], places[name], old_rows * size)
        wait(self._device, self._stream)
        moved = self._move_to(places)
        # As in new memory: what stood there were experts' bytes, which may not be numbers.
        for name in self._growing:
            size = self._row_sizes[name]
            self.write(name, old_rows * size, np.zeros((self._rows - old_rows) * size, np.uint8))
        return moved

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
        return -(-nbytes // self._row_sizes[name]) if name in self._growing else 0

    def _staging(self) -> np.ndarray:
        """Pinned memory for bytes on their way, u8 [STAGING]; made at the first call."""
        if self._staged is None:
            self._staged = self._device.pinned(STAGING)
        return self._staged

    def _layout(self, rows: int) -> tuple[dict[str, int], int]:
        """Where the buffers that grow lie in an area with room for so many positions, and its bytes."""
        layout = Layout()
        offsets = {name: layout.add(rows * self._row_sizes[name]) for name in self._growing}
        return offsets, layout.size

    def _laid_out(self, address: int) -> dict[str, int]:
        """The addresses of the buffers that grow, in an area from this address on."""
        return {name: address + offset for name, offset in self._layout(self._rows)[0].items()}

    def _move_to(self, places: dict[str, int]) -> dict[int, int]:
        moved = {self.addresses[name]: place for name, place in places.items()}
        self.addresses.update(places)
        return moved

    def _move_back(self, old: int, new: int, nbytes: int) -> None:
        """Copy to a place further back, in pieces that do not overlap with where they come from."""
        apart = new - old
        for end in range(nbytes, 0, -apart) if apart else ():
            start = max(0, end - apart)
            self._device.copy(self._stream, new + start, old + start, end - start)

    def _rounded(self, n: int) -> int:
        return min(self.n_ctx, -(-n // BLOCK) * BLOCK)


def _grows(buffer: Buffer, n_ctx: int) -> bool:
    return buffer.name.startswith(CACHE) and buffer.rows == n_ctx


def move_addresses(arguments: Iterable[np.ndarray], moved: Mapping[int, int]) -> None:
    """Put new addresses in the place of old ones, in argument structs and the structs within them.

    A new address may be another buffer's old one, so a struct that comes twice is changed once.
    """
    for struct in {struct.__array_interface__["data"][0]: struct for struct in arguments}.values():
        _move_addresses(struct, moved)


def _move_addresses(struct: np.ndarray, moved: Mapping[int, int]) -> None:
    for name in struct.dtype.names or ():
        field = struct[name]
        if field.dtype.names:
            _move_addresses(field, moved)
        elif field.dtype == np.int64 and int(field) in moved:
            struct[name] = moved[int(field)]
