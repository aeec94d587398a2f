"""Which expert lies in which slot, and which uploads change that.

One thread calls it between steps. `slot_of` and `table` say what a step may use. An upload takes its slot
from an expert when it starts, for then its bytes are overwritten; the new expert is there only from `commit`
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gguf_moe.errors import OptionError
from gguf_moe.experts.policies import FIFO, LRU, DecayedFrequency, Heat, Policy, StaticProfile
from gguf_moe.experts.s3_fifo import S3FIFO

POLICIES: dict[str, type[Policy]] = {
    "decayed": DecayedFrequency,
    "lru": LRU,
    "s3-fifo": S3FIFO,
    "static": StaticProfile,
    "fifo": FIFO,
}
DEFAULT_POLICY = "decayed"
MISSING = -1
"""In a table: the expert has no slot."""


class Upload(NamedTuple):
    """The weights of expert `ie` of layer `il` are to be copied into a slot of that layer."""

    il: int
    ie: int
    slot: int


class Move(NamedTuple):
    """The contents of a slot are to be copied to another one of the same layer."""

    il: int
    ie: int
    source: int
    slot: int


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    steps: int = 0
    hits: int = 0
    misses: int = 0
    uploads: int = 0
    """Uploads that were committed."""

    @property
    def hit_rate(self) -> float:
        """The share of the chosen experts that had a slot; 0 before the first step."""
        return self.hits / max(1, self.hits + self.misses)


def find_policy(name: str) -> type[Policy]:
    """A policy by its name. Raises OptionError for an unknown one."""
    if name not in POLICIES:
        raise OptionError(f"the cache policy is {name!r}, but must be one of {', '.join(POLICIES)}.")
    return POLICIES[name]


class Cache:
    """Slots of all layers. `slots_per_layer` may differ, and is 0 for a layer without experts.

    A step is: run it, `used`, start the uploads that this gave, then at a step boundary `commit` each that
    has arrived. Not more than max_in_flight are under way at any time.
    """

    def __init__(
        self,
        n_layer: int,
        n_expert: int,
        slots_per_layer: Sequence[int],
        policy: str | Policy = DEFAULT_POLICY,
        *,
        max_in_flight: int = 8,
    ):
        self.n_layer = n_layer
        self.n_expert = n_expert
        self.policy = find_policy(policy)(n_layer, n_expert) if isinstance(policy, str) else policy
        self.max_in_flight = max_in_flight
        self.counts = Counts()
        self._slots = self._checked(slots_per_layer)
        self._tables = [[MISSING] * n_expert for _ in range(n_layer)]
        # Taken from the end, so the lowest slots are filled first.
        self._free = [list(range(n))[::-1] for n in self._slots]
        self._in_flight: dict[tuple[int, int], Upload] = {}
        self._next_layer = 0
        self.policy.resize(self._slots)

    @property
    def slots_per_layer(self) -> tuple[int, ...]:
        """How many slots each layer has."""
        return self._slots

    @property
    def in_flight(self) -> list[Upload]:
        """Uploads that were neither committed nor cancelled."""
        return list(self._in_flight.values())

    def slot_of(self, il: int, ie: int) -> int | None:
        """The slot that holds an expert, or None."""
        slot = self._tables[il][ie]
        return None if slot == MISSING else slot

    def table(self, il: int) -> list[int]:
        """The slot of every expert of a layer, or MISSING. The list is the cache's own: do not change it."""
        return self._tables[il]

    def used(self, step_ids: Sequence[Sequence[int]]) -> list[Upload]:
        """A step chose these experts, [n_layer] of plain ints each; the uploads to start because of it."""
        n_requests, missed = 0, []
        use = self.policy.use
        for il, ids in enumerate(step_ids):
            if not ids:
                continue
            n_requests += len(ids)
            table = self._tables[il]
            use(il, ids)
            misses = [ie for ie in ids if table[ie] < 0]
            if misses:
                missed.append((il, misses))
        self.policy.end_step()
        n_misses = sum(len(misses) for _, misses in missed)
        self.counts.steps += 1
        self.counts.hits += n_requests - n_misses
        self.counts.misses += n_misses
        if not missed or len(self._in_flight) >= self.max_in_flight:
            return []
        return self._start_best(missed, step_ids)

    def prefilled(self, counts: Sequence[Sequence[int]], n_tokens: int) -> None:
        """A prompt of n_tokens chose the experts so often: [n_layer][n_expert]. It evicts nobody by itself.

        Call `refill` for the uploads that this suggests.
        """
        for il, layer in enumerate(counts):
            if any(layer):
                self.policy.seed(il, layer, n_tokens)

    def refill(self) -> list[Upload]:
        """Uploads of the experts that the policy ranks best: into free slots, or for clearly worse ones.

        It costs more than `used`: for after a prompt, a warm start or a larger budget, until it gives none.
        """
        uploads: list[Upload] = []
        for step in range(self.n_layer):
            if len(self._in_flight) >= self.max_in_flight:
                self._next_layer = (self._next_layer + step) % self.n_layer
                break
            uploads += self._refill_layer((self._next_layer + step) % self.n_layer)
        return uploads

    def fill(self) -> list[Upload]:
        """Uploads into free slots, whatever the policy thinks of them, until it gives none."""
        uploads = []
        for il, table in enumerate(self._tables):
            for ie, slot in enumerate(table):
                if not self._free[il] or len(self._in_flight) >= self.max_in_flight:
                    break
                if slot == MISSING and (il, ie) not in self._in_flight:
                    uploads.append(self._reserve(il, ie, self._free[il].pop()))
        return uploads

    def commit(self, upload: Upload) -> None:
        """The weights have arrived: from now on the expert has the slot. At step boundaries only."""
        self._take_off(upload)
        self._tables[upload.il][upload.ie] = upload.slot
        self.policy.enter(upload.il, upload.ie)
        self.counts.uploads += 1

    def cancel(self, upload: Upload) -> None:
        """The weights will not arrive, and nothing writes to the slot any more: it is free."""
        self._take_off(upload)
        self._free[upload.il].append(upload.slot)

    def resize(self, slots_per_layer: Sequence[int]) -> list[Move]:
        """Change the number of slots, with nothing in flight. The policy chooses who leaves.

        Returns the copies to make before the memory of the slots that went away is given back: from slots
        that went away into slots that are free, so their order does not matter.
        """
        if self._in_flight:
            raise ValueError("commit or cancel the uploads in flight before resizing")
        new = self._checked(slots_per_layer)
        moves: list[Move] = []
        for il, n_slots in enumerate(new):
            moves += self._resize_layer(il, n_slots)
        self._slots = new
        self.policy.resize(new)
        return moves

    def _start_best(
        self, missed: list[tuple[int, list[int]]], step_ids: Sequence[Sequence[int]]
    ) -> list[Upload]:
        """Start the uploads that gain most. Layers take turns at being first among equals."""
        gain, n_layer, first = self.policy.gain, self.n_layer, self._next_layer
        self._next_layer = (first + 1) % n_layer
        candidates = []
        for il, misses in missed:
            if not self._slots[il]:
                continue
            is_free = bool(self._free[il])
            for ie in dict.fromkeys(misses):
                if (il, ie) not in self._in_flight and ((worth := gain(il, ie)) > 0 or is_free):
                    candidates.append((-worth, (il - first) % n_layer, il, ie))
        candidates.sort()
        uploads: list[Upload] = []
        for _, _, il, ie in candidates:
            if len(self._in_flight) >= self.max_in_flight:
                break
            if upload := self._start(il, ie, step_ids[il]):
                uploads.append(upload)
        return uploads

    def _start(self, il: int, ie: int, busy: Sequence[int]) -> Upload | None:
        """Reserve a slot, a free one or that of an expert that is not busy and worth less."""
        free = self._free[il]
        if free:
            slot = free.pop()
        elif self.policy.gain(il, ie) > 0 and (victim := self.policy.evict(il, busy)) is not None:
            slot = self._tables[il][victim]
            self._tables[il][victim] = MISSING
        else:
            return None
        return self._reserve(il, ie, slot)

    def _reserve(self, il: int, ie: int, slot: int) -> Upload:
        upload = Upload(il, ie, slot)
        self._in_flight[il, ie] = upload
        return upload

    def _refill_layer(self, il: int) -> list[Upload]:
        uploads: list[Upload] = []
        table, policy = self._tables[il], self.policy
        if not self._slots[il] or not (self._free[il] or policy.can_swap):
            return uploads
        for ie in policy.ranking(il):
            if table[ie] >= 0 or (il, ie) in self._in_flight:
                continue
            is_wanted = self._free[il] or (policy.can_swap and policy.gain(il, ie) > 0)
            if not is_wanted or len(self._in_flight) >= self.max_in_flight:
                break
            if upload := self._start(il, ie, ()):
                uploads.append(upload)
        return uploads

    def _resize_layer(self, il: int, n_slots: int) -> list[Move]:
        table = self._tables[il]
        for _ in range(sum(slot >= 0 for slot in table) - n_slots):
            victim = self.policy.evict(il, ())
            assert victim is not None, "nobody is busy, so somebody can leave"
            table[victim] = MISSING
        taken = {slot for slot in table if slot >= 0}
        free = [slot for slot in reversed(range(n_slots)) if slot not in taken]
        moves = []
        for ie, slot in enumerate(table):
            if slot >= n_slots:
                table[ie] = free.pop()
                moves.append(Move(il, ie, slot, table[ie]))
        self._free[il] = free
        return moves

    def _take_off(self, upload: Upload) -> None:
        if self._in_flight.get((upload.il, upload.ie)) != upload:
            raise ValueError(f"{upload} is not in flight")
        del self._in_flight[upload.il, upload.ie]

    def _checked(self, slots_per_layer: Sequence[int]) -> tuple[int, ...]:
        if len(slots_per_layer) != self.n_layer:
            raise ValueError(f"{len(slots_per_layer)} numbers of slots for {self.n_layer} layers")
        return tuple(min(max(0, n), self.n_expert) for n in slots_per_layer)

    def heat(self) -> Heat | None:
        """What heat.py can save; None if the policy keeps none."""
        return self.policy.heat()

    def warm(self, heat: Heat) -> None:
        """Begin with the heat of an earlier run; call `refill` for the uploads that this suggests."""
        self.policy.warm(heat)
