"""What tasks of every step share on the device: the KV cache, and the states of recurrent layers."""

from __future__ import annotations

import numpy as np

from gguf_moe.graph.task import Graph
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.memory import row_size

STAGING = 1 << 24
"""Bytes that are read or written at a time."""
SHARED = ("cache_", "conv_states_", "ssm_states_")
"""What the names of these buffers begin with."""


class KvCaches:
    """The buffers that tasks of every step share. `addresses`: where they are on the device, by name."""

    def __init__(self, device: Device, graph: Graph):
        self._device = device
        self._stream = device.stream()
        self._staged: np.ndarray | None = None
        self.addresses = {
            buffer.name: device.allocate(buffer.rows * row_size(buffer))
            for buffer in graph.buffers().values()
            if buffer.name.startswith(SHARED)
        }

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
        """Give a buffer other bytes, u8 [nbytes]. Between steps only."""
        staging = self._staging()
        address = staging.__array_interface__["data"][0]
        for at in range(0, data.nbytes, STAGING):
            n = min(STAGING, data.nbytes - at)
            staging[:n] = data[at : at + n]
            self._device.copy(self._stream, self.addresses[name] + start + at, address, n)
            wait(self._device, self._stream)

    def _staging(self) -> np.ndarray:
        """Pinned memory for bytes on their way, u8 [STAGING]; made at the first call."""
        if self._staged is None:
            self._staged = self._device.pinned(STAGING)
        return self._staged
