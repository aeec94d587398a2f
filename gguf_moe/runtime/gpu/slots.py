"""Device memory for experts: slots with the file's bytes, the tables that point into them, and uploads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gguf_moe.arch.weights import Experts
from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.experts.budget import aligned, slot_size
from gguf_moe.experts.cache import MISSING, Cache, Upload
from gguf_moe.experts.policies import Heat
from gguf_moe.runtime.gpu.device import Device, wait_until
from gguf_moe.runtime.gpu.memory import Area, DeviceWeights
from gguf_moe.runtime.gpu.uploads import Copy, DirectUploads, StagedUploads, Uploads

ROLES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
MAX_IN_FLIGHT = 8
"""Uploads that may be under way: their slots serve nobody meanwhile."""


class ExpertSlots:
    """The experts of all layers that have some, and which of them the device holds.

    The tables, int64 [layers, 3 roles, n_expert] of device addresses, are copied to the device before each
    step: so a change is seen at a step boundary, by all kernels of a step at once. There is room for experts
    after `allocate`.
    """

    def __init__(
        self,
        device: Device,
        layers: Sequence[Experts],
        weights: DeviceWeights,
        policy: str,
        is_registered: bool = True,
    ):
        """is_registered: the device can read the file where it lies."""
        self._device = device
        self._layers = layers
        self._uploads: Uploads = DirectUploads(device) if is_registered else StagedUploads(device)
        self.n_expert = len(layers[0].ffn_gate_exps.nbytes) if layers else 0
        self.cache = Cache(len(layers), self.n_expert, [0] * len(layers), policy, max_in_flight=MAX_IN_FLIGHT)
        self.sizes = [expert_slot_size(experts) for experts in layers]
        """Bytes of a slot of each layer."""
        self._bases = [0] * len(layers)
        self._nbytes = 0
        n = len(layers) * len(ROLES) * self.n_expert
        self._host = device.pinned(8 * max(n, 1))
        self._roles = {
            id(getattr(experts, name)): (layer, role)
            for layer, experts in enumerate(layers)
            for role, name in enumerate(ROLES)
        }
        self._tables = self._host.view(np.int64)[:n].reshape(len(layers), len(ROLES), self.n_expert)
        self._device_tables = device.allocate(self._host.nbytes)
        for layer, experts in enumerate(layers):
            for role, name in enumerate(ROLES):
                address = self._device_tables + 8 * self.n_expert * (layer * len(ROLES) + role)
                weights.set_table(getattr(experts, name), address)
        self._arriving: list[tuple[Upload, Any]] = []
        self._end = self._lent = 0
        """Where the memory of all slots ends, and how much of it before that is lent."""
        self._returning: list[tuple[Upload, Any]] = []
        self.uploaded_bytes = 0

    def allocate(self, slots_per_layer: Sequence[int]) -> None:
        """Make room for so many experts of each layer. With OutOfMemoryError there is none."""
        sizes = [n * size for n, size in zip(slots_per_layer, self.sizes, strict=True)]
        self._nbytes = sum(sizes)
        self._end = self._nbytes + (self._device.allocate(self._nbytes) if self._nbytes else 0)
        starts = itertools.accumulate(sizes, initial=self._end - self._nbytes)
        self._bases = list(starts)[: len(sizes)]
        self.cache.resize(slots_per_layer)

    @property
    def nbytes(self) -> int:
        """Of the memory of all slots."""
        return self._nbytes

    def area(self, nbytes: int) -> Area:
        """The last nbytes of the slots' memory, which `lend` gives away."""
        return Area(self._end - nbytes, nbytes)

    def lend(self, nbytes: int) -> None:
        """Take the experts out of the last nbytes, until `take_back`. Between steps only."""
        self.settle()
        self._lent = nbytes
        for layer in self._lent_layers():
            self._tables[layer] = 0

    def take_back(self) -> None:
        """Bring the experts back that were in the slots which were lent."""
        for il in self._lent_layers():
            for ie, slot in enumerate(self.cache.table(il)):
                if slot != MISSING and not self._tables[il, 0, ie]:
                    upload = Upload(il, ie, slot)
                    self._returning.append((upload, self._bring(upload)))
        self._lent = 0

    def copy_tables(self, stream: Any) -> None:
        """Queue the copy of the tables to the device."""
        address = self._host.__array_interface__["data"][0]
        self._device.copy(stream, self._device_tables, address, self._host.nbytes)

    def missing(self, tensors: ExpertTensors) -> list[int]:
        """The experts of a layer that the device does not hold, given the matrices of any role."""
        layer, role = self._roles[id(tensors)]
        return np.nonzero(self._tables[layer, role] == 0)[0].tolist()

    def prefilled(self, ids: Sequence[Sequence[int]], n_tokens: int) -> None:
        """A prompt of n_tokens chose these experts, for each layer; the best of them are brought."""
        counts = [np.bincount(layer, minlength=self.n_expert).tolist() for layer in ids]
        self.cache.prefilled(counts, n_tokens)
        self._start(self.cache.refill())

    def used(self, step_ids: Sequence[Sequence[int]]) -> None:
        """A step chose these experts, for each layer; uploads begin because of it."""
        self._start(self.cache.used(step_ids))

    def commit_arrived(self) -> None:
        """At a step boundary: what has arrived can be used from now on."""
        waiting = []
        for upload, mark in self._arriving:
            if self._uploads.is_done(mark):
                self.cache.commit(upload)
                self._tables[upload.il, :, upload.ie] = self._places(upload)
            else:
                waiting.append((upload, mark))
        self._arriving = waiting
        if self._returning:
            self._commit_returned()

    def settle(self) -> None:
        """Wait until all that is under way has arrived. Between steps only.

        Raises DeviceError if nothing arrives for STEP_LIMIT_S.
        """
        while n := len(self._arriving) + len(self._returning):
            wait_until(lambda n=n: self._has_fewer(n), "an upload")  # type: ignore[misc]

    def fill(self) -> None:
        """Put experts into all free slots, and wait for them. Between steps only."""
        self._bring_all(self.cache.fill)

    def warm(self, heat: Heat) -> None:
        """Begin with the heat of an earlier run: bring its hottest experts, and wait for them."""
        self.cache.warm(heat)
        self._bring_all(self.cache.refill)

    def refill(self) -> None:
        """Bring the experts that the policy ranks best, then any others into free slots; wait for them."""
        self._bring_all(self.cache.refill)
        self.fill()

    def clear(self) -> None:
        """Give the slots' memory back until `allocate` is called again. Between steps only."""
        self.settle()
        self.cache.resize([0] * self.cache.n_layer)
        self._tables[:] = 0
        self._lent = 0
        if self._nbytes:
            self._device.free(self._end - self._nbytes)
        self._nbytes = 0

    def close(self) -> None:
        """End the uploads. The device takes the memory back itself."""
        self._uploads.close()

    def _lent_layers(self) -> list[int]:
        """The layers that have a part of what is lent."""
        start = self._end - self._lent
        ends = [*self._bases[1:], self._end]
        return [layer for layer, end in enumerate(ends) if end > start]

    def _has_fewer(self, n: int) -> bool:
        """Commit what has arrived; whether fewer than n uploads are under way then."""
        self.commit_arrived()
        return len(self._arriving) + len(self._returning) < n

    def _commit_returned(self) -> None:
        waiting = []
        for upload, mark in self._returning:
            if not self._uploads.is_done(mark):
                waiting.append((upload, mark))
            elif self.cache.slot_of(upload.il, upload.ie) == upload.slot:
                self._tables[upload.il, :, upload.ie] = self._places(upload)
        self._returning = waiting

    def _bring_all(self, choose: Callable[[], list[Upload]]) -> None:
        while uploads := choose():
            self._start(uploads)
            self.settle()

    def _start(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            self._forget(upload)
            self._arriving.append((upload, self._bring(upload)))

    def _bring(self, upload: Upload) -> Any:
        """Begin to copy an expert into its slot; a mark for its arrival."""
        copies = []
        for role, address in zip(ROLES, self._places(upload), strict=True):
            tensors = getattr(self._layers[upload.il], role)
            copies.append(Copy(address, tensors.addresses[upload.ie], tensors.nbytes[upload.ie]))
        self.uploaded_bytes += sum(copy.nbytes for copy in copies)
        return self._uploads.start(copies)

    def _forget(self, upload: Upload) -> None:
        """Take the expert that had the slot from the tables: its bytes are overwritten from now on."""
        for ie in np.nonzero(self._tables[upload.il, 0] == self._slot_address(upload))[0]:
            assert self.cache.table(upload.il)[ie] == MISSING, "the cache has taken it off"
            self._tables[upload.il, :, ie] = 0

    def _slot_address(self, upload: Upload) -> int:
        return self._bases[upload.il] + upload.slot * self.sizes[upload.il]

    def _places(self, upload: Upload) -> list[int]:
        """Where each role of the expert lies in its slot."""
        address, places = self._slot_address(upload), []
        for role in ROLES:
            places.append(address)
            address += aligned(getattr(self._layers[upload.il], role).nbytes[upload.ie])
        return places


def expert_slot_size(experts: Experts) -> int:
    """Bytes of a slot that any expert of a layer fits into."""
    parts = zip(*(getattr(experts, role).nbytes for role in ROLES), strict=True)
    return max(slot_size(nbytes) for nbytes in parts)
