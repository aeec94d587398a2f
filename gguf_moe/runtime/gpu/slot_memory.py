"""Where experts may lie on the device: one area with the slots of all layers, and room in front of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gguf_moe.arch.weights import Experts
from gguf_moe.experts.budget import slot_size
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.memory import Area

ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


class SlotMemory:
    """Layer after layer its slots, all of one size within a layer. What is in front of them can grow.

    There is none before `allocate`.
    """

    def __init__(self, device: Device, layers: Sequence[Experts]):
        self._device = device
        self.sizes = [_slot_size(experts) for experts in layers]
        """Bytes of a slot of each layer."""
        self.front = 0
        """Address of all of the memory."""
        self._start = self._end = 0
        """Of the slots."""
        self._bases = [0] * len(layers)
        self._ends = [0] * len(layers)

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return self._end - self._start

    @property
    def most_front_bytes(self) -> int:
        """What there can be in front when no slot is left."""
        return self._end - self.front

    def allocate(self, slots_per_layer: Sequence[int], front_bytes: int) -> None:
        """Make room for so many slots of each layer, and for so many bytes in front of them.

        Raises OutOfMemoryError.
        """
        sizes = [n * size for n, size in zip(slots_per_layer, self.sizes, strict=True)]
        nbytes = front_bytes + sum(sizes)
        self.front = self._device.allocate(nbytes) if nbytes else 0
        self._start, self._end = self.front + front_bytes, self.front + nbytes
        bounds = list(itertools.accumulate(sizes, initial=self._start))
        self._bases, self._ends = bounds[:-1], bounds[1:]

    def address(self, il: int, slot: int) -> int:
        """Of a layer's slot."""
        return self._bases[il] + slot * self.sizes[il]

    def grow_front(self, front_bytes: int) -> dict[int, int]:
        """Take slots away until there are so many bytes in front of them.

        Returns the layers that lose some, and how many. Those that are left have other numbers, from 0 on.
        """
        self._start, lost = max(self._start, self.front + front_bytes), {}
        for il, (base, end, size) in enumerate(zip(self._bases, self._ends, self.sizes, strict=True)):
            if base < min(self._start, end):
                lost[il] = min((end - base) // size, -(-(self._start - base) // size))
                self._bases[il] += lost[il] * size
        return lost

    def area(self, nbytes: int) -> Area:
        """The last so many bytes."""
        return Area(self._end - nbytes, nbytes)

    def layers_with_last(self, nbytes: int) -> list[int]:
        """The layers that have a part of the last so many bytes."""
        return [il for il, end in enumerate(self._ends) if end > max(self._end - nbytes, self._bases[il])]

    def has_last(self, il: int, slot: int, nbytes: int) -> bool:
        """Whether a layer's slot has a part of the last so many bytes."""
        return self.address(il, slot + 1) > self._end - nbytes


def _slot_size(experts: Experts) -> int:
    """Bytes of a slot that any expert of a layer fits into."""
    parts = zip(*(getattr(experts, role).nbytes for role in ROLES), strict=True)
    return max(slot_size(nbytes) for nbytes in parts)
