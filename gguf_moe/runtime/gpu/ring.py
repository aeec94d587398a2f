"""Experts that pass through the GPU: pieces of device memory that are filled on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.experts.budget import aligned
from gguf_moe.runtime.gpu.device import Device

Wave = tuple[ExpertTensors, Sequence[int]]
"""Matrices of one layer and role, and of which experts: what one piece is filled with."""


class Ring:
    """n_pieces of piece_size bytes, which are filled and used in turns.

    A step brings *waves*, which it counts from 0; each has as many matrices as fit into a piece. For each
    there is `arrival` and, when it is used, `release`, in order. As many as there are pieces come ahead.
    """

    def __init__(self, device: Device, piece_size: int, n_pieces: int, allocate: Callable[[int], int]):
        self._device = device
        self.stream = device.stream()
        """Where the copies are queued."""
        self._size = piece_size
        self._pieces = [allocate(piece_size) for _ in range(n_pieces)]
        self._waves: Sequence[Wave] = ()
        self._arrivals: list[Any] = []
        """Of the waves that were queued so far, those that were asked for included."""
        self._n_used = 0
        self.copied_bytes = 0

    def n_in_wave(self, tensors: ExpertTensors) -> int:
        """How many experts' matrices a wave can have."""
        return max(1, self._size // _stride(tensors))

    def addresses(self, wave: int, tensors: ExpertTensors, n: int) -> list[int]:
        """Where the first n matrices of a wave will be."""
        first = self._pieces[wave % len(self._pieces)]
        return [first + i * _stride(tensors) for i in range(n)]

    def start(self, stream: Any, waves: Sequence[Wave]) -> None:
        """Begin to bring the waves of a step, behind all that was queued on `stream`."""
        self._device.wait_for(self.stream, self._device.event(stream))
        self._waves, self._arrivals, self._n_used = waves, [], 0
        for _ in waves[: len(self._pieces)]:
            self._bring()

    def arrival(self) -> Any:
        """An event: the next wave that is not released has arrived."""
        return self._arrivals[self._n_used]

    def release(self, event: Any) -> None:
        """After this event the memory of that wave may be overwritten."""
        self._n_used += 1
        if len(self._arrivals) < len(self._waves):
            self._device.wait_for(self.stream, event)
            self._bring()

    def _bring(self) -> None:
        """Queue the copies of the first wave that is not queued yet."""
        wave = len(self._arrivals)
        tensors, experts = self._waves[wave]
        for address, ie in zip(self.addresses(wave, tensors, len(experts)), experts, strict=True):
            nbytes = tensors.nbytes[ie]
            self._device.copy(self.stream, address, tensors.addresses[ie], nbytes)
            self.copied_bytes += nbytes
        self._arrivals.append(self._device.event(self.stream))


def _stride(tensors: ExpertTensors) -> int:
    return aligned(max(tensors.nbytes))
