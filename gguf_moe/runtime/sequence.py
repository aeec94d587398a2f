"""Conversations that share a KV cache, and what one of them brings to a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False, slots=True)
class CachedSequence:
    """One conversation's part of the KV cache: n_ctx cells from first_cell on."""

    first_cell: int
    goes_back: bool = True
    """Whether it can go back to an earlier token: the states of recurrent layers are those after the last."""
    tokens: list[int] = field(default_factory=list)
    """The ids whose keys and values are there."""

    def truncate(self, n: int) -> int:
        """Forget all but the first n tokens, or all if it cannot go back; how many remain."""
        if n < len(self.tokens) and not self.goes_back:
            n = 0
        del self.tokens[n:]
        return len(self.tokens)

    def lose_states(self) -> None:
        """A step has ended early: states of recurrent layers are of no use now."""
        if not self.goes_back:
            self.tokens.clear()


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens that a step appends to one sequence; the logits of the last n_outputs of them are wanted."""

    sequence: CachedSequence
    tokens: Sequence[int]
    n_outputs: int

    def cells(self) -> np.ndarray:
        """For each token the first cell of its sequence and its position: int32 [tokens, 2]."""
        found = np.empty((len(self.tokens), 2), np.int32)
        found[:, 0] = self.sequence.first_cell
        found[:, 1] = len(self.sequence.tokens) + np.arange(len(self.tokens))
        return found


@dataclass(frozen=True, slots=True)
class StatePart:
    """Where a sequence has a part of what it must remember: bytes of a buffer."""

    name: str
    start: int
    nbytes: int
