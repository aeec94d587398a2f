"""How much each expert is used lately, for somebody to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HALF_LIFE = 512
"""Tokens after which a use counts half."""


class ExpertUse:
    """Counts of choices that fade with the tokens that follow. `layers` are those that have experts."""

    def __init__(self, layers: Sequence[int], n_expert: int):
        self.layers = list(layers)
        self._counts = np.zeros((len(self.layers), n_expert))

    def add(self, chosen: Sequence[np.ndarray]) -> None:
        """What some tokens chose: for each of `layers` ids [n_tokens, n_expert_used]."""
        if not chosen:
            return
        self._counts *= 0.5 ** (len(chosen[0]) / HALF_LIFE)
        for counts, ids in zip(self._counts, chosen, strict=True):
            counts += np.bincount(np.asarray(ids).reshape(-1), minlength=len(counts))

    def shares(self) -> list[list[float]]:
        """Of each layer's choices the share of every expert; zeros before the first."""
        totals = np.maximum(self._counts.sum(axis=1, keepdims=True), 1.0)
        shares: list[list[float]] = (self._counts / totals).round(4).tolist()
        return shares
