"""Device memory of one graph: its buffers, its constants, and the inputs that are copied before each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gguf_moe.checkpoint import ExpertTensors, Tensor
from gguf_moe.graph.task import Buffer, Rows
from gguf_moe.runtime.gpu.device import Device, wait_until
from gguf_moe.runtime.memory import DTYPES, row_size

ALIGNMENT = 256


class Layout:
    """Offsets of areas that lie one behind the other."""

    def __init__(self) -> None:
        self.size = 0

    def add(self, nbytes: int) -> int:
        """The offset of a new area."""
        offset = self.size
        self.size += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return offset


class Area:
    """A part of device memory, handed out from its beginning, which is aligned, to its end."""

    def __init__(self, address: int, nbytes: int):
        assert address % ALIGNMENT == 0, "kernels read 16 bytes at a time"
        self._layout = Layout()
        self._address = address
        self._nbytes = nbytes

    def allocate(self, nbytes: int) -> int:
        """Address of memory that is not zeroed."""
        offset = self._layout.add(nbytes)
        assert self._layout.size <= self._nbytes, "the area is as large as what it is for"
        return self._address + offset


class Tenant:
    """A device to take memory from that can be given back all at once; otherwise it is that device."""

    def __init__(self, device: Device):
        self._device = device
        self._addresses: list[int] = []
        self._pinned: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def allocate(self, nbytes: int) -> int:
        address = self._device.allocate(nbytes)
        self._addresses.append(address)
        return address

    def pinned(self, nbytes: int) -> np.ndarray:
        self._pinned.append(self._device.pinned(nbytes))
        return self._pinned[-1]

    def leave(self) -> None:
        """Give all of it back. Nothing may use it any more."""
        while self._addresses:
            self._device.free(self._addresses.pop())
        while self._pinned:
            self._device.unpin(self._pinned.pop())


class DeviceWeights:
    """The tensors on the device, uploaded once for all graphs, and where each layer's experts are looked up.

    A table has the device address of each expert's weights, or 0 for an expert that is not there.
    """

    def __init__(self, device: Device):
        self._device = device
        self._stream = device.stream()
        self._addresses: dict[int, int] = {}
        self._constants: dict[tuple[int, ...], int] = {}
        self._sources: list[np.ndarray] = []
        self._tables: dict[int, int] = {}
        self.nbytes = 0

    def address(self, tensor: Tensor) -> int:
        """Where a tensor's bytes are on the device; they are uploaded at the first call."""
        if tensor.address not in self._addresses:
            self._addresses[tensor.address] = self._upload(tensor.data)
        return self._addresses[tensor.address]

    def constant(self, values: Sequence[int]) -> int:
        """Where int64 numbers are on the device."""
        key = tuple(values)
        if key not in self._constants:
            self._constants[key] = self._upload(np.array(values, np.int64).view(np.uint8))
        return self._constants[key]

    def set_table(self, experts: ExpertTensors, address: int) -> None:
        """Say where the table of a layer's role is: int64 [n_expert]."""
        self._tables[id(experts)] = address

    def table(self, experts: ExpertTensors) -> int:
        """Where the table of a layer's role is."""
        return self._tables[id(experts)]

    def finish(self) -> None:
        """Wait until all uploads are done. Raises DeviceError if they take longer than STEP_LIMIT_S."""
        wait_until(lambda: self._device.is_idle(self._stream), "the upload of the weights")
        self._sources.clear()

    def _upload(self, data: np.ndarray) -> int:
        address = self._device.allocate(data.nbytes)
        self._sources.append(data)
        self._device.copy(self._stream, address, data.__array_interface__["data"][0], data.nbytes)
        self.nbytes += data.nbytes
        return address


class DeviceMemory:
    """The buffers of one graph, and what else its kernels need on the device.

    `inputs` are the buffers that the host fills before each step. They lie together with the step's numbers,
    so that one copy brings all. `shared` are addresses of buffers that other graphs use too: the KV cache.
    `allocate` gives other memory than the device does.
    """

    def __init__(
        self,
        device: Device,
        weights: DeviceWeights,
        buffers: Iterable[Buffer],
        inputs: Iterable[str],
        shared: dict[str, int],
        allocate: Callable[[int], int] | None = None,
    ):
        self.weights = weights
        self._allocate = allocate or device.allocate
        self._shared = shared
        self._scratch: dict[str, int] = {}
        self._device = device
        inputs = set(inputs)
        layout, host = Layout(), Layout()
        host.add(8 * len(_WORDS))  # the step's numbers come first
        offsets: dict[str, tuple[Layout, int]] = {}
        places: dict[str, tuple[int, Buffer]] = {}
        for buffer in buffers:
            if buffer.name in shared:
                continue
            where = host if buffer.name in inputs else layout
            offset = where.add(buffer.rows * row_size(buffer))
            offsets[buffer.name] = where, offset
            if where is host:
                places[buffer.name] = offset, buffer
        self._host = device.pinned(host.size)
        self._words = self._host[: 8 * len(_WORDS)].view(np.int64)
        self._inputs = {name: _array(self._host[at:], buffer) for name, (at, buffer) in places.items()}
        self._host_address = self._host.__array_interface__["data"][0]
        bases = {id(where): self._allocate(max(where.size, 1)) for where in (layout, host)}
        self._base = bases[id(host)]
        self._addresses = {name: bases[id(where)] + offset for name, (where, offset) in offsets.items()}
        self.nbytes = layout.size + host.size

    def address(self, buffer: Buffer) -> int:
        """Where a buffer is on the device. One that is in no graph (scratch) is made at the first call."""
        if (address := self._shared.get(buffer.name)) or (address := self._addresses.get(buffer.name)):
            return address
        if buffer.name not in self._scratch:
            self._scratch[buffer.name] = self._allocate(buffer.rows * row_size(buffer))
        return self._scratch[buffer.name]

    def scratch(self, name: str, nbytes: int) -> int:
        """Zeroed device memory of this name, made at the first call."""
        if name not in self._scratch:
            self._scratch[name] = self._allocate(nbytes)
        return self._scratch[name]

    def weight_address(self, tensor: Tensor) -> int:
        """Where a tensor is on the device."""
        return self.weights.address(tensor)

    @property
    def n_past_address(self) -> int:
        """Where the kernels read how many positions the KV cache holds."""
        return self.word("n_past")

    def rows_address(self, rows: Rows) -> int:
        """Where the kernels read the step's number of rows."""
        return self.word(rows)

    def word(self, name: str) -> int:
        """Where one of the step's numbers is on the device; see _WORDS."""
        return self._base + 8 * _WORDS.index(name)

    def set_step(self, n_past: int, n_tokens: int, n_outputs: int, n_places: int, number: int) -> None:
        """The numbers of the coming step; `number` counts steps from 1."""
        self._words[:] = (n_past, n_tokens, n_outputs, n_places, number, 0)

    def input(self, name: str) -> np.ndarray:
        """An input's array in main memory: [rows, cols]."""
        return self._inputs[name]

    def copy_inputs(self, stream: object) -> None:
        """Queue the copy of the step's numbers and inputs to the device."""
        self._device.copy(stream, self._base, self._host_address, self._host.nbytes)


def _array(memory: np.ndarray, buffer: Buffer) -> np.ndarray:
    """The first bytes of u8 memory as a buffer's rows."""
    data = memory[: buffer.rows * row_size(buffer)]
    return data.view(DTYPES[buffer.kind]).reshape(buffer.rows, buffer.cols)


class _Nowhere:
    """Stands for memory and weights where a graph is lowered only to see its kernels. All addresses are 0."""

    n_past_address = 0

    @property
    def weights(self) -> _Nowhere:
        return self

    def address(self, buffer: Buffer) -> int:
        return 0

    def scratch(self, name: str, nbytes: int) -> int:
        return 0

    def weight_address(self, tensor: Tensor) -> int:
        return 0

    def rows_address(self, rows: Rows) -> int:
        return 0

    def table(self, experts: ExpertTensors) -> int:
        return 0

    def constant(self, values: Sequence[int]) -> int:
        return 0


NOWHERE: Any = _Nowhere()

_WORDS = ("n_past", *Rows, "step", "aborted")
"""int64 each. `step` counts steps; `aborted` becomes 1 on the device when a step is given up."""
