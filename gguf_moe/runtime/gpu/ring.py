"""Experts that pass through the GPU: pieces of device memory that are filled on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.experts.budget import aligned
from gguf_moe.runtime.gpu.device import Device


class Ring:
    """n_pieces of piece_size bytes, which are filled and used in turns.

    Each fill is a *wave*: as many matrices of one layer and role as fit. A step counts its waves from 0.
    """

    def __init__(self, device: Device, piece_size: int, n_pieces: int, allocate: Callable[[int], int]):
        self._device = device
        self.stream = device.stream()
        """Where the copies are queued."""
        self._size = piece_size
        self._pieces = [allocate(piece_size) for _ in range(n_pieces)]
        self._used: list[Any] = [None] * n_pieces
        self.copied_bytes = 0

    def n_in_wave(self, tensors: ExpertTensors) -> int:
        """How many experts' matrices a wave can have."""
        return max(1, self._size // _stride(tensors))

    def addresses(self, wave: int, tensors: ExpertTensors, n: int) -> list[int]:
        """Where the first n matrices of a wave will be."""
        first = self._pieces[wave % len(self._pieces)]
        return [first + i * _stride(tensors) for i in range(n)]

    def start(self, stream: Any) -> None:
        """At the beginning of a step: all that was queued on `stream` comes first."""
        self._used = [None] * len(self._pieces)
        self._device.wait_for(self.stream, self._device.event(stream))

    def bring(self, wave: int, tensors: ExpertTensors, experts: Sequence[int]) -> Any:
        """Queue the copies of these experts' matrices; an event for their arrival."""
        if (used := self._used[wave % len(self._pieces)]) is not None:
            self._device.wait_for(self.stream, used)
        for address, ie in zip(self.addresses(wave, tensors, len(experts)), experts, strict=True):
            nbytes = tensors.nbytes[ie]
            self._device.copy(self.stream, address, tensors.addresses[ie], nbytes)
            self.copied_bytes += nbytes
        return self._device.event(self.stream)

    def release(self, wave: int, event: Any) -> None:
        """After this event the wave's memory may be overwritten."""
        self._used[wave % len(self._pieces)] = event


def _stride(tensors: ExpertTensors) -> int:
    return aligned(max(tensors.nbytes))
