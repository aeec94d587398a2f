"""How far two runs of the same tokens are from each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, over the last axis."""
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def negative_log_likelihood(logits: np.ndarray, ids: list[int]) -> float:
    """Of the tokens after the first half, each by the logits before it. logits: [n, n_vocab]."""
    return -sum(float(log_softmax(logits[i])[ids[i + 1]]) for i in range(len(ids) // 2, len(ids) - 1))


def n_scored(ids: list[int]) -> int:
    """How many tokens `negative_log_likelihood` sums over."""
    return len(ids) - 1 - len(ids) // 2


@dataclass(frozen=True)
class Difference:
    """How far one run's logits are from those of a base run, over `positions` tokens."""

    positions: int
    nmse: float
    mean_kl: float  # of KL(base || other)
    max_kl: float
    same_top_1: float  # share of positions


def row_blocks(paths: list[Path]) -> Iterator[np.ndarray]:
    """Logits stored in .npy files, a few rows at a time."""
    for path in paths:
        logits = np.load(path, mmap_mode="r")
        yield from np.array_split(logits, -(-len(logits) // 64))


def difference(base: list[Path], other: list[Path]) -> Difference:
    """Compare .npy files of float32 [n, n_vocab], one per sequence."""
    kl, same = [], []
    error = norm = 0.0
    for b, o in zip(row_blocks(base), row_blocks(other), strict=True):
        if b.shape != o.shape:
            raise SystemExit(f"The models' vocabularies differ: {b.shape[1]} and {o.shape[1]} tokens")
        error += float(np.square(b - o, dtype=np.float64).sum())
        norm += float(np.square(b, dtype=np.float64).sum())
        log_b, log_o = log_softmax(b), log_softmax(o)
        kl.append((np.exp(log_b) * (log_b - log_o)).sum(axis=-1))
        same.append(b.argmax(axis=-1) == o.argmax(axis=-1))
    kls = np.concatenate(kl)
    return Difference(
        positions=len(kls),
        nmse=error / norm,
        mean_kl=float(kls.mean()),
        max_kl=float(kls.max()),
        same_top_1=float(np.concatenate(same).mean()),
    )


def agreeing_tokens(ours: list[int], theirs: list[int], max_tokens: int) -> int:
    """How many greedy tokens agree before the first that differs; `max_tokens` when the texts are the same.

    A text that ended early is shorter; theirs leaves the end-of-generation token out, ours may hold it.
    """
    n = 0
    while n < min(len(ours), len(theirs)) and ours[n] == theirs[n]:
        n += 1
    ended = len(theirs) < max_tokens
    return max_tokens if n == len(theirs) and len(ours) - n <= ended else n
