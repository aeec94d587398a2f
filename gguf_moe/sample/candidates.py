"""The tokens that may come next, and the steps of the chain that leave some of them out.

What each step means is defined by llama.cpp (src/llama-sampler.cpp).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

GROUP = 128
"""So many tokens, of which only the likeliest is looked at when few are to be kept of a large vocabulary."""
LIKELY = (8.0, 16.0)
"""How far below the largest logit tokens are looked at first, when a share of all probability is wanted."""


class Candidates:
    """At first all tokens. The steps change `ids` and `logits` in place, and never leave nothing.

    ids: int64 [n]; logits: float32 [n], a copy of those given, float32 [n_vocab].
    """

    def __init__(self, logits: np.ndarray):
        self.ids = _all_ids(len(logits))
        self.logits = logits.copy()
        self._n_vocab = len(logits)
        self._sorted = False

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Add values to the logits of those of the ids that are still here; each id comes once."""
        at, which = self._find(ids)
        self.logits[at] += values[which].astype(np.float32)
        self._sorted = False

    def penalize(self, ids: np.ndarray, repeat: float) -> None:
        """Make those of the ids that are still here less likely, by a factor that is right for the sign."""
        at, _ = self._find(ids)
        chosen = self.logits[at]
        self.logits[at] = np.where(chosen > 0, chosen / repeat, chosen * repeat)
        self._sorted = False

    def probabilities(self) -> np.ndarray:
        """float64 [n], in the order of the ids; they sum to 1."""
        p = np.exp(self.logits.astype(np.float64) - self._largest())
        p /= p.sum()
        return p

    def most_likely(self) -> int:
        """The token with the largest logit."""
        return int(self.ids[self.logits.argmax()])

    def temperature(self, temperature: float) -> None:
        """Divide the logits; 0 keeps the most likely token alone."""
        if temperature == 0.0:
            self._keep(np.array([self.logits.argmax()]))
        else:
            self.logits = self.logits / temperature

    def top_k(self, k: int) -> None:
        """Keep the k largest logits; all for 0."""
        if 0 < k < len(self.ids) and not self._sorted:
            least = _reached_by(self.logits, k)
            # Where fewer than k are possible at all, as with a grammar, the others need no order.
            self._keep((self.logits >= least if least > -np.inf else self.logits > least).nonzero()[0])
        self._sort()
        if k:
            self._keep(slice(k))

    def top_p(self, p: float) -> None:
        """Keep as many of the falling probabilities as it takes to reach p."""
        probabilities = self.probabilities()
        for distance in () if self._sorted else LIKELY:
            likely = (self.logits >= self.logits.max() - np.float32(distance)).nonzero()[0]
            if probabilities[likely].sum() > p:
                self._keep(likely)
                probabilities = probabilities[likely]
                break
        order = self._sort()
        n = int(probabilities[order].cumsum().searchsorted(p)) + 1
        self._keep(slice(n))

    def min_p(self, p: float) -> None:
        """Keep what is at least p times as likely as the most likely."""
        is_likely = self.logits >= np.float32(self._largest() + math.log(p))
        self._keep(slice(int(np.count_nonzero(is_likely))) if self._sorted else is_likely)

    def top_n_sigma(self, n: float) -> None:
        """Keep the logits that are at most n standard deviations below the largest."""
        if len(self.ids) > 1:
            finite = self.logits[np.isfinite(self.logits)].astype(np.float64)
            self._keep(np.flatnonzero(self.logits >= finite.max() - n * finite.std()))

    def typical_p(self, p: float) -> None:
        """Keep the tokens whose surprise is nearest to the mean surprise, until they reach p together."""
        self._sort()
        probabilities = self.probabilities()
        surprise = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        entropy = float((probabilities * surprise).sum())
        order = np.argsort(np.abs(surprise - entropy), kind="stable")
        n = int(np.searchsorted(np.cumsum(probabilities[order]), p, side="right")) + 1
        self._keep(np.sort(order[:n]))

    def exclude_top(self, threshold: float) -> None:
        """Leave out all tokens of at least the threshold's probability but the least likely of them (XTC)."""
        self._sort()
        n = int(np.count_nonzero(self.probabilities() >= threshold))
        self._keep(slice(max(0, n - 1), None))

    def surprise_below(self, mu: float) -> np.ndarray:
        """Keep the tokens whose surprise is at most mu bits, or the most likely; their new probabilities."""
        self._sort()
        n = int(np.count_nonzero(self.probabilities() >= 2.0**-mu))
        self._keep(slice(max(1, n)))
        return self.probabilities()

    def _largest(self) -> float:
        """The largest logit."""
        return float(self.logits[0] if self._sorted else self.logits.max())

    def _find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the ids are here, and for each place which of the ids it is."""
        if len(self.ids) == self._n_vocab and not self._sorted:
            return ids, np.arange(len(ids))
        at, which = np.nonzero(self.ids[:, None] == ids[None, :])
        return at, which

    def _sort(self) -> np.ndarray | slice:
        """Largest logit first, of equal ones the lowest id; in which order the tokens were taken for it."""
        if self._sorted:
            return slice(None)
        order = (-self.logits).argsort(kind="stable")
        self._keep(order)
        self._sorted = True
        return order

    def _keep(self, index: np.ndarray | slice) -> None:
        self.ids, self.logits = self.ids[index], self.logits[index]


@lru_cache(4)
def _all_ids(n: int) -> np.ndarray:
    """All tokens' ids, int64 [n]; nobody may write to them."""
    ids = np.arange(n)
    ids.flags.writeable = False
    return ids


def _reached_by(logits: np.ndarray, k: int) -> np.float32:
    """A number that at least k logits reach, and few more: the k-th largest, or that of groups' largest."""
    n_groups = len(logits) // GROUP
    if n_groups > 4 * k:
        logits = logits[: GROUP * n_groups].reshape(GROUP, n_groups).max(axis=0)
    return np.partition(logits, -k)[-k]
