#!/usr/bin/env python3
"""Make routing traces like those of real models, for benchmarks with random weights.

  synthetic_routing.py qwen3-30b-a3b trace.npz --layers 48 --steps 2048

An expert's score at a token is
  popularity * (its own constant) + conversation * (redrawn every 700 tokens) + drift * AR(1) + Gumbel noise,
and the best n_expert_used are chosen. The parameters were fitted to published hit rates, shares and drifts of
each model; the hit rates of LRU are met within 5 points. Layers are independent. `uniform` chooses at random.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONVERSATION = 700
CHUNK = 256
"""Tokens that are drawn at once."""


@dataclass(frozen=True)
class Shape:
    """A layer's sizes, and the weights of the parts of a score; `memory` is the AR(1) coefficient."""

    n_expert: int
    n_expert_used: int
    popularity: float
    conversation: float
    drift: float
    memory: float


SHAPES = {
    "olmoe": Shape(64, 8, 0.8176, 1.4590, 0.6564, 0.98108),
    "gpt-oss-20b": Shape(32, 4, 0.7361, 1.7368, 0.7060, 0.99511),
    "qwen3-30b-a3b": Shape(128, 8, 0.3644, 2.1588, 0.8467, 0.94031),
    "gpt-oss-120b": Shape(128, 4, 1.0091, 1.3633, 1.4093, 0.98405),
    "mixtral-8x7b": Shape(8, 2, 0.0909, 0.3817, 0.7391, 0.93092),
    "deepseek-v2-lite": Shape(64, 6, 0.0624, 0.6931, 0.8337, 0.98067),
    "qwen1.5-moe": Shape(60, 4, 0.3135, 0.9007, 2.5137, 0.33455),
    "qwen2-57b-a14b": Shape(64, 8, 0.6120, 0.3798, 0.8484, 0.98579),
    "phi3.5-moe": Shape(16, 2, 0.5976, 1.3457, 2.0093, 0.79288),
}


def trace(shape: Shape, n_layer: int, n_steps: int, seed: int, *, uniform: bool = False) -> np.ndarray:
    """Experts chosen at each token, best first: int16 [n_steps, n_layer, n_expert_used]."""
    rng = np.random.default_rng(seed)
    size = (n_layer, shape.n_expert)
    popularity, conversation = rng.standard_normal(size), rng.standard_normal(size)
    drift = rng.standard_normal(size)
    innovation = (1 - shape.memory**2) ** 0.5
    ids = np.empty((n_steps, n_layer, shape.n_expert_used), np.int16)
    for start in range(0, n_steps, CHUNK):
        n = min(CHUNK, n_steps - start)
        scores = rng.gumbel(size=(n, *size))
        if not uniform:
            steps = rng.standard_normal((n, *size)) * innovation
            for i in range(n):
                if (start + i) % CONVERSATION == 0:
                    conversation = rng.standard_normal(size)
                drift = shape.memory * drift + steps[i]
                scores[i] += shape.conversation * conversation + shape.drift * drift
            scores += shape.popularity * popularity
        order = np.argpartition(scores, -shape.n_expert_used, axis=-1)[..., -shape.n_expert_used :]
        best = np.take_along_axis(scores, order, -1).argsort(-1)[..., ::-1]
        ids[start : start + n] = np.take_along_axis(order, best, -1)
    return ids


def main() -> None:
    from gguf_moe.experts.routing import Routing, save_routing

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=SHAPES, metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("dst", type=Path, metavar="DST")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--steps", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--uniform", action="store_true", help="choose at random: the worst case for a cache")
    args = parser.parse_args()
    shape = SHAPES[args.model]
    ids = trace(shape, args.layers, args.steps, args.seed, uniform=args.uniform)
    kind = "uniform" if args.uniform else args.model
    save_routing(args.dst, Routing(ids, shape.n_expert, {"source": f"synthetic {kind}, seed {args.seed}"}))


if __name__ == "__main__":
    main()
