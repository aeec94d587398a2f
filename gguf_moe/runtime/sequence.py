"""Conversations that share a KV cache, and what one of them brings to a step.

The states of recurrent layers are those after the last token. To go back to an earlier one takes a copy that
was made there: a sequence keeps one, from shortly before the end of its last long prompt. There the next turn
of a chat may go another way, as templates leave out what a model has thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PROMPT_END = 16
"""States are kept before the last so many tokens of a prompt."""
KEEP_AGAIN = 64
"""They are kept where that is so many tokens behind those that were kept before, or behind the beginning."""


@dataclass(eq=False, slots=True)
class CachedSequence:
    """One conversation's part of the KV cache: n_ctx cells from first_cell on."""

    first_cell: int
    goes_back: bool = True
    """Whether it can go back to any earlier token: there are no recurrent layers."""
    tokens: list[int] = field(default_factory=list)
    """The ids whose keys and values are there."""
    kept_states: list[np.ndarray] = field(default_factory=list)
    """A copy of the states after the first n_kept tokens."""
    n_kept: int = 0
    must_go_back: bool = False
    """Whether the states must become the kept ones before the next step."""

    def truncate(self, n: int) -> int:
        """Forget all but the first n tokens, or more if it cannot go back to there; how many remain."""
        if n < len(self.tokens) and not self.goes_back:
            self.go_back(n)
        del self.tokens[n:]
        return len(self.tokens)

    def go_back(self, n: int) -> None:
        """To the kept states, if they are those of n tokens or fewer; else forget all."""
        self.must_go_back = 0 < self.n_kept <= n
        if not self.must_go_back:
            self.forget_kept()
        del self.tokens[self.n_kept :]

    def forget_kept(self) -> None:
        """The kept states are of other tokens now."""
        self.kept_states, self.n_kept, self.must_go_back = [], 0, False

    def next_piece(self, n_rest: int, most: int) -> tuple[int, bool]:
        """How many of a prompt's last n_rest tokens come next, at most `most`; if states are kept then."""
        n, n_before_end = min(n_rest, most), n_rest - PROMPT_END
        n_since = len(self.tokens) + n_before_end - self.n_kept
        if self.goes_back or n_before_end <= 0 or n_since < KEEP_AGAIN:
            return n, False
        return min(n, n_before_end), n >= n_before_end


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens that a step appends to one sequence; the logits of the last n_outputs of them are wanted."""

    sequence: CachedSequence
    tokens: Sequence[int]
    n_outputs: int
    keeps_states: bool = False
    """Whether the sequence shall be able to go back to the end of these tokens."""

    def cells(self) -> np.ndarray:
        """For each token the first cell of its sequence and its position: int32 [tokens, 2]."""
        found = np.empty((len(self.tokens), 2), np.int32)
        found[:, 0] = self.sequence.first_cell
        found[:, 1] = len(self.sequence.tokens) + np.arange(len(self.tokens))
        return found
