"""What runs one step of a context, whatever it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Step:
    """Some tokens behind those that the KV cache holds."""

    tokens: Sequence[int]
    n_past: int
    n_outputs: int
    """The logits of so many of the last tokens are wanted."""
    angles: Mapping[str, np.ndarray]
    """The graph's inputs NAME_cos and NAME_sin: float32 [len(tokens), n_rot / 2]."""


class Runner(Protocol):
    """Owns a context's memory and whatever computes on it."""

    def run(self, step: Step) -> np.ndarray:
        """Run a step; its logits, float32 [n_outputs, n_vocab], until the next one.

        An exception (KeyboardInterrupt) leaves the KV cache as it was for all earlier positions.
        """

    def close(self) -> None:
        """Join threads and give memory back. Twice is fine."""
