"""What runs one step of a context, whatever it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Step:
    """Some tokens behind those that the KV cache holds, of one sequence or of several."""

    tokens: Sequence[int]
    n_past: int
    """Positions that the cache holds, if there is one sequence."""
    outputs: Sequence[int]
    """The tokens whose logits are wanted, by their places in `tokens`, ascending."""
    inputs: Mapping[str, np.ndarray]
    """The graph's other inputs by name, a row for each token: see graph.decoder.build_graph."""


class Runner(Protocol):
    """Owns a context's memory and whatever computes on it."""

    def make_room(self, n_positions: int) -> None:
        """Prepare for a cache of so many positions in all, before `long_step`. Raises OutOfMemoryError."""

    def long_step(self, n_left: int, n_outputs: int) -> int:
        """How many of n_left tokens to take in one step if more than a chunk of the context; else 0.

        The last n_outputs of the n_left give logits.
        """

    def run(self, step: Step) -> np.ndarray:
        """Run a step; its logits, float32 [len(outputs), n_vocab], until the next one.

        An exception (KeyboardInterrupt) leaves the KV cache as it was for all earlier positions; the states
        of recurrent layers are lost.
        """

    def chosen(self, n_tokens: int) -> list[np.ndarray]:
        """The experts of the last step, which had so many tokens: int32 [n_tokens, n_expert_used] for each
        layer that has experts, best first."""

    def read(self, name: str, start: int, nbytes: int) -> np.ndarray:
        """Bytes of a buffer that lasts from step to step (KV cache, states): a copy, u8 [nbytes]."""

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Change bytes of such a buffer."""

    def close(self) -> None:
        """Join threads and give memory back. Twice is fine."""
