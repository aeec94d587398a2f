"""From logits to the next token: llama.cpp's usual chain, in its order and with its defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gguf_moe.errors import NumericError, OptionError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. Raises OptionError for a value out of range.

    temperature 0 takes the most likely token; top_k 0, top_p 1, min_p 0, repeat_penalty 1 switch a step off.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_k", self.top_k, 0, math.inf)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _check("repeat_last_n", self.repeat_last_n, 0, math.inf)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**64 - 1)


class Sampler:
    """Chooses tokens one after the other; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: np.ndarray, recent: Sequence[int] = ()) -> int:
        """The next token. logits: float32 [n_vocab], left as they are; recent: the tokens before it.

        Raises NumericError if the logits are not finite.
        """
        if not math.isfinite(float(logits.max())):
            raise NumericError(
                "the model's output is not a number; the file is damaged, or its weights overflow: "
                "check the file's checksum, or try another quantization."
            )
        logits = self._penalize(logits, recent)
        s = self.sampling
        if s.temperature == 0.0:
            return int(logits.argmax())
        ids = _top_k(logits, s.top_k)
        probabilities = _softmax(logits[ids])
        keep = _top_p(probabilities, s.top_p)
        ids, probabilities = ids[:keep], probabilities[:keep]
        keep = int(np.count_nonzero(probabilities >= s.min_p * probabilities[0]))
        ids = ids[:keep]
        cumulative = np.cumsum(_softmax(logits[ids] / s.temperature))
        # The sum may end a rounding error below 1, so the last token takes what is left.
        drawn = np.searchsorted(cumulative[:-1], self._random.random(), side="right")
        return int(ids[drawn])

    def _penalize(self, logits: np.ndarray, recent: Sequence[int]) -> np.ndarray:
        """Make recent tokens less likely, as llama.cpp's penalties sampler does."""
        s = self.sampling
        if s.repeat_penalty == 1.0 or not s.repeat_last_n or not recent:
            return logits
        logits = logits.copy()
        ids = np.unique(np.asarray(recent[-s.repeat_last_n :]))
        chosen = logits[ids]
        logits[ids] = np.where(chosen > 0, chosen / s.repeat_penalty, chosen * s.repeat_penalty)
        return logits


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits, largest first; all of them for k = 0."""
    if 0 < k < len(logits):
        candidates = np.argpartition(logits, -k)[-k:]
    else:
        candidates = np.arange(len(logits))
    return candidates[np.argsort(-logits[candidates], kind="stable")]


def _top_p(probabilities: np.ndarray, p: float) -> int:
    """How many of the falling probabilities it takes to reach p; at least one."""
    return min(len(probabilities), int(np.searchsorted(np.cumsum(probabilities), p)) + 1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities that sum to 1."""
    p = np.exp(logits.astype(np.float64) - float(logits.max()))
    return p / p.sum()


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        end = f" to {high:g}" if high < math.inf else " on"
        raise OptionError(f"{name} is {value}, but must be from {low:g}{end}.")
