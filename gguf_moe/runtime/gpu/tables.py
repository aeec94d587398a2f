"""Where each expert's matrices are on the device: the tables that kernels look them up in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gguf_moe.arch.weights import Experts
from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.memory import DeviceWeights
from gguf_moe.runtime.gpu.slot_memory import ROLES


class ExpertTables:
    """Device addresses, int64 [layers, 3 roles, n_expert]; 0 for an expert that is not there.

    They are copied to the device before each step. Between steps only they may change.
    """

    def __init__(self, device: Device, layers: Sequence[Experts], weights: DeviceWeights):
        """weights is told where the tables are."""
        self._device = device
        n_expert = len(layers[0].ffn_gate_exps.nbytes) if layers else 0
        n = len(layers) * len(ROLES) * n_expert
        self._memory = device.pinned(8 * max(n, 1))
        self._address = device.allocate(self._memory.nbytes)
        self._n_expert = n_expert
        self._rows = np.arange(len(layers))[:, np.newaxis]
        self.addresses = self._memory.view(np.int64)[:n].reshape(len(layers), len(ROLES), n_expert)
        # Single numbers are written much faster this way than into an array.
        self._words = self._memory.data.cast("q")
        self._roles: dict[int, tuple[int, int]] = {}
        for layer, experts in enumerate(layers):
            for role, name in enumerate(ROLES):
                tensors = getattr(experts, name)
                self._roles[id(tensors)] = layer, role
                weights.set_table(tensors, self._address + 8 * self._word(layer, role, 0))

    def enter(self, il: int, ie: int, places: Sequence[int]) -> None:
        """An expert of a layer is at these addresses, one for each role."""
        for role, place in enumerate(places):
            self._words[self._word(il, role, ie)] = place

    def leave(self, il: int, ie: int) -> None:
        """An expert is not there any more."""
        self.enter(il, ie, (0,) * len(ROLES))

    def has(self, il: int, ie: int) -> bool:
        """Whether an expert is there."""
        return self._words[self._word(il, 0, ie)] != 0

    def missing(self, tensors: ExpertTensors) -> list[int]:
        """The experts of a layer that are not there, given the matrices of any role."""
        layer, role = self._roles[id(tensors)]
        return np.nonzero(self.addresses[layer, role] == 0)[0].tolist()

    def n_missing(self, ids: np.ndarray) -> int:
        """How many of the experts int32 [layers, n] are not there."""
        return int(np.count_nonzero(self.addresses[self._rows, 0, ids] == 0))

    def copy(self, stream: Any) -> None:
        """Queue the copy to the device."""
        source = self._memory.__array_interface__["data"][0]
        self._device.copy(stream, self._address, source, self._memory.nbytes)

    def _word(self, il: int, role: int, ie: int) -> int:
        return (il * len(ROLES) + role) * self._n_expert + ie
