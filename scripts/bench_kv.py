"""How fast one token after the other is with a KV cache of one type and of another, in one process.

python scripts/bench_kv.py MODEL.gguf [--kv f16 q8_0] [--depth 4096] [--tokens 16] [-t 2] [--pairs 7]

Both caches hold the same random tokens. Pairs of runs alternate. Prints tokens per second of both, and the
ratio's median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

import gguf_moe
from gguf_moe.model import Model


def run(model: Model, ids: list[int], n_tokens: int) -> float:
    """Tokens per second behind these, which the cache holds from the second time on."""
    eog = {token: -np.inf for token in model.tokenizer.eog_ids}
    pieces = iter(model.generate(ids, max_tokens=n_tokens + 1, temperature=0.0, logit_bias=eog))
    next(pieces)
    start = time.perf_counter()
    n = sum(1 for piece in pieces if piece.token is not None)
    return n / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--kv", nargs=2, default=["f16", "q8_0"])
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    n_ctx = args.depth + args.tokens + 8
    options = {"threads": args.threads, "n_ctx": n_ctx, "device": "cpu"}
    with (
        gguf_moe.load(args.model, kv_type=args.kv[0], **options) as one,
        gguf_moe.load(args.model, kv_type=args.kv[1], **options) as other,
    ):
        ids = np.random.default_rng(0).integers(0, one.hparams.n_vocab, args.depth).tolist()
        for model in (one, other):
            run(model, ids, args.tokens)
        pairs = [(run(one, ids, args.tokens), run(other, ids, args.tokens)) for _ in range(args.pairs)]
    low, median, high = statistics.quantiles((b / a for a, b in pairs), n=4, method="inclusive")
    for kv, rates in zip(args.kv, zip(*pairs, strict=True), strict=True):
        print(f"{kv}: {statistics.median(rates):.1f} tok/s")
    print(f"ratio {median:.2f} (quartiles {low:.2f} to {high:.2f})")
    print(json.dumps({"ratio": median, "low": low, "high": high, "pairs": pairs}))


if __name__ == "__main__":
    main()
