"""Which experts the device holds, in slots with the file's bytes; and uploads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from gguf_moe.arch.weights import Experts
from gguf_moe.experts.budget import aligned
from gguf_moe.experts.cache import MISSING, Cache, Counts, Upload
from gguf_moe.experts.policies import Heat
from gguf_moe.runtime.gpu.device import Device, wait_until
from gguf_moe.runtime.gpu.memory import DeviceWeights
from gguf_moe.runtime.gpu.slot_memory import ROLES, SlotMemory
from gguf_moe.runtime.gpu.tables import ExpertTables
from gguf_moe.runtime.gpu.uploads import Copy, DirectUploads, StagedUploads, Uploads

MAX_IN_FLIGHT = 8
"""Uploads that may be under way: their slots serve nobody meanwhile."""
SMALL_SHARE = 0.01
"""Of a step's time. A decision that takes less is made at once; what it brings is there a step earlier."""


class ExpertSlots:
    """The experts of all layers that have some, and which of them the device holds.

    A change is seen at a step boundary, by all kernels of a step at once. There is room for experts after
    `allocate`. In front of the slots the same memory has an area for others, which can grow.

    To decide what comes, and to start the copies, can take Python longer than some layers take a GPU. So a
    thread does it while the next step runs: after `used` comes `begin_step`, the GPU starts, `work_beside`.
    The cache is the thread's until the next call of any method; what it changes is written into the tables at
    the next boundary. An expert leaves at one boundary, and the upload into its slot begins behind that.
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
        self._layers = layers
        self._uploads: Uploads = DirectUploads(device) if is_registered else StagedUploads(device)
        self.tables = ExpertTables(device, layers, weights)
        self.n_expert = self.tables.addresses.shape[2]
        self.cache = Cache(len(layers), self.n_expert, [0] * len(layers), policy, max_in_flight=MAX_IN_FLIGHT)
        self.memory = SlotMemory(device, layers)
        self._owners: list[dict[int, int]] = [{} for _ in layers]
        """By slot, the expert whose bytes lie there as far as the tables say."""
        self._lent = 0
        """How many of the memory's last bytes are lent."""
        self._chosen: np.ndarray | None = None
        """What the last step chose, until the cache is told."""
        self._decided: list[Upload] = []
        """Uploads that have not begun. Those that leave for them may still be in the tables."""
        self._arriving: list[tuple[Upload, Any]] = []
        self._arrived: list[tuple[Upload, list[int]]] = []
        """Uploads that are not in the tables yet, and where each role is."""
        self._returning: list[tuple[Upload, Any]] = []
        self._decision_s = 0.0
        """How long the last decision took."""
        self._thread = ThreadPoolExecutor(1, "gguf-moe experts")
        self._work: Future[None] | None = None
        self.uploaded_bytes = 0
        self.counts = Counts()
        """What steps found in the tables, and what came into these; the cache's own are of its decisions."""

    def allocate(self, slots_per_layer: Sequence[int], front_bytes: int = 0) -> None:
        """Make room for so many experts of each layer, and for so many bytes in front of them.

        Raises OutOfMemoryError.
        """
        self.memory.allocate(slots_per_layer, front_bytes)
        self.cache.resize(slots_per_layer)

    def make_front(self, front_bytes: int) -> None:
        """Take the experts out of so many bytes in front, at most all; the best of their layers stay.

        Between steps only.
        """
        if self._lent:
            self._take_back()
        self.settle()
        lost = self.memory.grow_front(front_bytes)
        if not lost:
            return
        for il in lost:
            self.tables.addresses[il] = 0
            self._owners[il].clear()
        slots = self.cache.slots_per_layer
        self.cache.resize([0 if il in lost else n for il, n in enumerate(slots)])
        self.cache.resize([n - lost.get(il, 0) for il, n in enumerate(slots)])
        self.refill()

    def used(self, ids: np.ndarray, step_s: float) -> None:
        """A step of so many seconds chose these experts, int32 [layers, n].

        What follows is decided at once or, if that takes long, beside the next step.
        """
        n_missing = self.tables.n_missing(ids)
        self.counts.steps += 1
        self.counts.hits += ids.size - n_missing
        self.counts.misses += n_missing
        self._chosen = ids
        if self._decision_s < SMALL_SHARE * step_s:
            self._finish()
            self._decide()

    def begin_step(self) -> None:
        """At a step boundary: what the thread has decided, and what has arrived, is true from now on.

        What was lent comes back. Raises DeviceError if an upload failed.
        """
        self._finish()
        if self._lent:
            self._take_back()

    def work_beside(self) -> None:
        """While a step runs that has begun since `begin_step`: let the thread start uploads, and decide."""
        if self._chosen is not None or self._decided or self._arriving:
            self._work = self._thread.submit(self._keep_books)

    def settle(self) -> None:
        """Decide on what was used, and wait until all has arrived. Between steps only.

        Raises DeviceError if nothing arrives for STEP_LIMIT_S.
        """
        self._finish()
        while self._chosen is not None or self._decided:
            self._keep_books()
            self._finish()
        while n := len(self._arriving) + len(self._returning):
            wait_until(lambda n=n: self._has_fewer(n), "an upload")  # type: ignore[misc]

    def prefilled(self, ids: np.ndarray, n_tokens: int) -> None:
        """A prompt of n_tokens chose these experts, int32 [layers, n]; the best of them are brought."""
        self._finish()
        counts = [np.bincount(layer, minlength=self.n_expert).tolist() for layer in ids]
        self.cache.prefilled(counts, n_tokens)
        self._decided += self.cache.refill()

    def fill(self) -> None:
        """Put experts into all free slots, and wait for them. Between steps only."""
        self._bring_all(self.cache.fill)

    def warm(self, heat: Heat) -> None:
        """Begin with the heat of an earlier run: bring its hottest experts, and wait for them."""
        self._finish()
        self.cache.warm(heat)
        self._bring_all(self.cache.refill)

    def refill(self) -> None:
        """Bring the experts that the policy ranks best, then any others into free slots; wait for them."""
        self._bring_all(self.cache.refill)
        self.fill()

    def lend(self, nbytes: int) -> None:
        """Take the experts out of the memory's last bytes until the next `begin_step`. Between steps only."""
        self.settle()
        self._lent = max(self._lent, nbytes)
        for il, ie, _ in self._in_lent_slots():
            self.tables.leave(il, ie)

    def heat(self) -> Heat | None:
        """What `warm` takes, the last step included; None if the policy keeps none. Between steps only."""
        self._finish()
        self._keep_books()
        self._finish()
        return self.cache.heat()

    def close(self) -> None:
        """End the uploads. The device takes the memory back itself."""
        self._thread.shutdown(cancel_futures=True)
        self._uploads.close()

    def _keep_books(self) -> None:
        """Start the uploads whose slots are free by now, see what has arrived, decide on more."""
        while self._decided:
            upload = self._decided.pop(0)
            self._arriving.append((upload, self._bring(upload)))
        # Uploads arrive in the order in which they began.
        while self._arriving and self._uploads.is_done(self._arriving[0][1]):
            upload = self._arriving.pop(0)[0]
            self.cache.commit(upload)
            self._arrived.append((upload, self._places(upload)))
        if self._chosen is not None:
            self._decide()

    def _decide(self) -> None:
        start = time.perf_counter()
        chosen, self._chosen = self._chosen, None
        if chosen is not None:
            self._decided += self.cache.used(chosen.tolist())
        self._decision_s = time.perf_counter() - start

    def _finish(self) -> None:
        """Wait for the thread, and write what it has found into the tables. It can be called again."""
        if self._work:
            wait_until(self._work.done, "the start of an upload")
            self._work.result()
            self._work = None
        while self._arrived:
            upload, places = self._arrived[-1]
            self.tables.enter(upload.il, upload.ie, places)
            self._owners[upload.il][upload.slot] = upload.ie
            self._arrived.pop()
            self.counts.uploads += 1
        for upload in self._decided:
            if (ie := self._owners[upload.il].get(upload.slot)) is not None:
                self.tables.leave(upload.il, ie)
        if self._returning:
            self._commit_returned()

    def _take_back(self) -> None:
        """Bring the experts back that were in the slots which were lent."""
        for il, ie, slot in self._in_lent_slots():
            if not self.tables.has(il, ie):
                upload = Upload(il, ie, slot)
                self._returning.append((upload, self._bring(upload)))
        self._lent = 0

    def _in_lent_slots(self) -> Iterator[tuple[int, int, int]]:
        """Layer, expert and slot of all whose slots have a part of what is lent."""
        for il in self.memory.layers_with_last(self._lent):
            for ie, slot in enumerate(self.cache.table(il)):
                if slot != MISSING and self.memory.has_last(il, slot, self._lent):
                    yield il, ie, slot

    def _has_fewer(self, n: int) -> bool:
        """Commit what has arrived; whether fewer than n uploads are under way then."""
        self._keep_books()
        self._finish()
        return len(self._arriving) + len(self._returning) < n

    def _commit_returned(self) -> None:
        waiting = []
        for upload, mark in self._returning:
            if not self._uploads.is_done(mark):
                waiting.append((upload, mark))
            elif self.cache.slot_of(upload.il, upload.ie) == upload.slot:
                self.tables.enter(upload.il, upload.ie, self._places(upload))
        self._returning = waiting

    def _bring_all(self, choose: Callable[[], list[Upload]]) -> None:
        self.settle()
        while uploads := choose():
            self._decided += uploads
            self.settle()

    def _bring(self, upload: Upload) -> Any:
        """Begin to copy an expert into its slot; a mark for its arrival."""
        copies = []
        for role, address in zip(ROLES, self._places(upload), strict=True):
            tensors = getattr(self._layers[upload.il], role)
            copies.append(Copy(address, tensors.addresses[upload.ie], tensors.nbytes[upload.ie]))
        self.uploaded_bytes += sum(copy.nbytes for copy in copies)
        return self._uploads.start(copies)

    def _places(self, upload: Upload) -> list[int]:
        """Where each role of the expert lies in its slot."""
        address, places = self.memory.address(upload.il, upload.slot), []
        for role in ROLES:
            places.append(address)
            address += aligned(getattr(self._layers[upload.il], role).nbytes[upload.ie])
        return places
