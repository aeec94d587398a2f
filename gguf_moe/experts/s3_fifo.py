"""S3-FIFO (Yang et al., SOSP 2023): three queues. A short one keeps what is used once from the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from gguf_moe.experts.policies import Policy

SMALL_SHARE = 0.1
"""The share of the slots that the queue of newcomers has."""
MOST_USES = 3
"""Uses are counted up to here."""


class S3FIFO(Policy):
    """Newcomers wait in `small`; those used again move to `main`, the others leave and are remembered.

    Who comes back while it is remembered goes to `main` at once. Every miss comes in.
    """

    def __init__(self, n_layer: int, n_expert: int):
        super().__init__(n_layer, n_expert)
        self._uses = [[0] * n_expert for _ in range(n_layer)]
        self._small: list[deque[int]] = [deque() for _ in range(n_layer)]
        self._main: list[deque[int]] = [deque() for _ in range(n_layer)]
        self._ghosts: list[dict[int, None]] = [{} for _ in range(n_layer)]
        self._slots: Sequence[int] = [0] * n_layer

    def use(self, il: int, ids: Sequence[int]) -> None:
        uses = self._uses[il]
        for ie in ids:
            if uses[ie] < MOST_USES:
                uses[ie] += 1

    def gain(self, il: int, ie: int) -> float:
        return 1.0

    def evict(self, il: int, busy: Collection[int]) -> int | None:
        small, main = self._small[il], self._main[il]
        if all(ie in busy for ie in small) and all(ie in busy for ie in main):
            return None
        is_small_full = len(small) >= max(1, int(SMALL_SHARE * self._slots[il]))
        if is_small_full and (gone := self._evict_small(il, busy)) is not None:
            return gone
        gone = self._evict_main(il, busy)
        return self._evict_small(il, busy, last_resort=True) if gone is None else gone

    def enter(self, il: int, ie: int) -> None:
        self._uses[il][ie] = 0
        if ie in self._ghosts[il]:
            del self._ghosts[il][ie]
            self._main[il].append(ie)
        else:
            self._small[il].append(ie)

    def resize(self, slots_per_layer: Sequence[int]) -> None:
        self._slots = list(slots_per_layer)

    def _evict_small(self, il: int, busy: Collection[int], *, last_resort: bool = False) -> int | None:
        """The first newcomer that was not used again; those that were go over to the main queue."""
        small, uses = self._small[il], self._uses[il]
        for _ in range(len(small)):
            ie = small.popleft()
            if ie in busy:
                small.append(ie)
            elif uses[ie] and not last_resort:
                uses[ie] = 0
                self._main[il].append(ie)
            else:
                self._remember(il, ie)
                return ie
        return None

    def _evict_main(self, il: int, busy: Collection[int]) -> int | None:
        """The first that was not used since its last turn; each use gives one more turn."""
        main, uses = self._main[il], self._uses[il]
        for _ in range(len(main) * (MOST_USES + 1)):
            ie = main.popleft()
            if ie in busy:
                main.append(ie)
            elif uses[ie]:
                uses[ie] -= 1
                main.append(ie)
            else:
                return ie
        return None

    def _remember(self, il: int, ie: int) -> None:
        ghosts = self._ghosts[il]
        ghosts[ie] = None
        while len(ghosts) > self._slots[il]:
            del ghosts[next(iter(ghosts))]
