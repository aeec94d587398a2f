"""Policies: which expert a layer lets in, and which one leaves for it.

Layers are independent. A policy only learns what happens; the cache decides when to ask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

Heat = list[list[float]]
"""A number for each expert of each layer, [n_layer][n_expert]: the larger, the more it was used lately."""

HALF_LIFE = 32
"""Tokens after which a use counts half. Mean hit rate, and uploads a token and layer, on synthetic traces of
nine models (scripts/synthetic_routing.py) with an eighth to three eighths of the experts in slots:
16: 61.9 %, 0.40; 32: 61.1 %, 0.19; 48: 60.2 %, 0.12; LRU: 58.0 %, 2.12."""
HYSTERESIS = 1.1
"""An expert comes in if it is so many times as hot as the one that leaves. On the same traces 1.0 gives
61.5 % and 0.30 uploads, 1.3 gives 60.4 % and 0.13."""
LARGEST_UNIT = 1e200
"""When a use counts so much, all numbers are scaled down."""


class Policy(ABC):
    """What all policies are told and asked. `il` is a layer, `ie` an expert."""

    can_swap = False
    """Whether `gain` means something for an expert that was not used just now."""

    def __init__(self, n_layer: int, n_expert: int):
        self.n_layer = n_layer
        self.n_expert = n_expert

    @abstractmethod
    def use(self, il: int, ids: Sequence[int]) -> None:
        """These experts were chosen in the present step."""

    @abstractmethod
    def gain(self, il: int, ie: int) -> float:
        """How much letting ie in would be worth, more is better; 0 or less: it stays out."""

    @abstractmethod
    def evict(self, il: int, busy: Collection[int]) -> int | None:
        """Choose an expert that is not busy, and forget that it is there; None if all are busy."""

    @abstractmethod
    def enter(self, il: int, ie: int) -> None:
        """An expert has got its slot."""

    def end_step(self) -> None:
        """All layers of a step were told."""
        return None

    def seed(self, il: int, counts: Sequence[float], n_tokens: int) -> None:
        """A prompt of n_tokens chose expert ie of a layer counts[ie] times."""
        return None

    def ranking(self, il: int) -> list[int]:
        """The experts that deserve a slot, best first."""
        return []

    def resize(self, slots_per_layer: Sequence[int]) -> None:
        """The numbers of slots changed."""
        return None

    def heat(self) -> Heat | None:
        """What `warm` takes; None if the policy keeps none."""
        return None

    def warm(self, heat: Heat) -> None:
        """Begin with the heat of an earlier run."""
        return None


class _ScorePolicy(Policy):
    """The expert with the lowest score leaves. Scores of experts that are not used never rise."""

    def __init__(self, n_layer: int, n_expert: int):
        super().__init__(n_layer, n_expert)
        self._scores: Heat = [[0.0] * n_expert for _ in range(n_layer)]
        self._residents: list[set[int]] = [set() for _ in range(n_layer)]
        # Only a use raises a score, so the coldest one stays it until it is used or somebody enters.
        self._coldest: list[tuple[int, float] | None] = [None] * n_layer

    def gain(self, il: int, ie: int) -> float:
        return 1.0

    def evict(self, il: int, busy: Collection[int]) -> int | None:
        residents = self._residents[il]
        coldest = self._find_coldest(il)
        if coldest in busy:
            score = self._scores[il].__getitem__
            coldest = min((ie for ie in residents if ie not in busy), key=score, default=-1)
        if coldest < 0:
            return None
        residents.remove(coldest)
        self._coldest[il] = None
        return coldest

    def enter(self, il: int, ie: int) -> None:
        self._residents[il].add(ie)
        self._coldest[il] = None

    def ranking(self, il: int) -> list[int]:
        return sorted(range(self.n_expert), key=self._scores[il].__getitem__, reverse=True)

    def seed(self, il: int, counts: Sequence[float], n_tokens: int) -> None:
        # Those that were never used line up by their counts, behind all that were.
        scores = self._scores[il]
        scores[:] = [s if s > 0 else -1 / (1 + n) for s, n in zip(scores, counts, strict=True)]
        self._coldest[il] = None

    def warm(self, heat: Heat) -> None:
        for il, layer in enumerate(heat):
            self.seed(il, layer, 1)

    def _find_coldest(self, il: int) -> int:
        """The resident with the lowest score; -1 if there are none."""
        residents, scores, cached = self._residents[il], self._scores[il], self._coldest[il]
        if not residents:
            return -1
        if cached is None or scores[cached[0]] != cached[1]:
            ie = min(residents, key=scores.__getitem__)
            self._coldest[il] = cached = (ie, scores[ie])
        return cached[0]


class LRU(_ScorePolicy):
    """The expert that was not used for the longest time leaves; every miss comes in."""

    def __init__(self, n_layer: int, n_expert: int):
        super().__init__(n_layer, n_expert)
        self._now = 1.0

    def use(self, il: int, ids: Sequence[int]) -> None:
        scores, now = self._scores[il], self._now
        for ie in ids:
            scores[ie] = now

    def end_step(self) -> None:
        self._now += 1.0


class FIFO(_ScorePolicy):
    """The expert that came first leaves; every miss comes in: what the paper arXiv 2512.16473 does."""

    def __init__(self, n_layer: int, n_expert: int):
        super().__init__(n_layer, n_expert)
        self._entries = 0.0

    def use(self, il: int, ids: Sequence[int]) -> None:
        pass

    def enter(self, il: int, ie: int) -> None:
        self._entries += 1.0
        self._scores[il][ie] = self._entries
        super().enter(il, ie)


class DecayedFrequency(_ScorePolicy):
    """The expert with the lowest decayed number of uses leaves, if the one that wants in is clearly hotter.

    Instead of all scores sinking with each token, what a use counts rises.
    """

    can_swap = True

    def __init__(
        self, n_layer: int, n_expert: int, *, half_life: float = HALF_LIFE, hysteresis: float = HYSTERESIS
    ):
        super().__init__(n_layer, n_expert)
        self._decay = 0.5 ** (1 / half_life)
        self._hysteresis = hysteresis
        self._unit = 1.0

    def use(self, il: int, ids: Sequence[int]) -> None:
        scores, unit = self._scores[il], self._unit
        for ie in ids:
            scores[ie] += unit

    def end_step(self) -> None:
        self._unit /= self._decay
        if self._unit > LARGEST_UNIT:
            self._scores = self.heat()
            self._unit = 1.0
            self._coldest = [None] * self.n_layer

    def gain(self, il: int, ie: int) -> float:
        scores = self._scores[il]
        coldest = self._find_coldest(il)
        if coldest < 0:
            return scores[ie] / self._unit
        return (scores[ie] - self._hysteresis * scores[coldest]) / self._unit

    def seed(self, il: int, counts: Sequence[float], n_tokens: int) -> None:
        """As if the tokens had come one by one, each expert's uses spread evenly."""
        if n_tokens < 1:
            return
        left = self._decay**n_tokens
        weight = self._unit * (1 - left) / (n_tokens * (1 - self._decay))
        scores = self._scores[il]
        scores[:] = [score * left + n * weight for score, n in zip(scores, counts, strict=True)]
        self._coldest[il] = None

    def heat(self) -> Heat:
        return [[score / self._unit for score in scores] for scores in self._scores]

    def warm(self, heat: Heat) -> None:
        self._scores = [[score * self._unit for score in layer] for layer in heat]
        self._coldest = [None] * self.n_layer


class StaticProfile(_ScorePolicy):
    """The hottest experts of an earlier run stay in, whatever this run uses. Without heat it does nothing."""

    can_swap = True

    def use(self, il: int, ids: Sequence[int]) -> None:
        pass

    def seed(self, il: int, counts: Sequence[float], n_tokens: int) -> None:
        pass

    def gain(self, il: int, ie: int) -> float:
        scores = self._scores[il]
        coldest = self._find_coldest(il)
        return scores[ie] - scores[coldest] if coldest >= 0 else scores[ie]

    def heat(self) -> Heat:
        return [list(scores) for scores in self._scores]

    def warm(self, heat: Heat) -> None:
        self._scores = [list(layer) for layer in heat]
        self._coldest = [None] * self.n_layer
