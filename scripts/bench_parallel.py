"""How much faster several answers at once are than one after the other, in one process.

python scripts/bench_parallel.py MODEL.gguf [--parallel 8] [--tokens 64] [-t 2] [--pairs 5]

Pairs of runs alternate: one answer alone, and several at once, which read different prompts. Prints tokens
per second of both, the ratio's median and quartiles, and what the ratio could be at most if time were bytes
of weights read: several answers share the dense weights, and those experts that more than one of them chose.
That is for uniform routing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
from decode_times import expert_share

import gguf_moe
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.model import Model
from gguf_moe.scheduler import Job

PROMPTS = """The history of|Once upon a time|In a small town|A good way to|The weather|My friend asked me
To make bread,|Nobody knew why|At the end of|She opened the|Most people|The first computer|A long letter
On the other side|When the sun|Seven ships""".replace("\n", "|").split("|")


def run(model: Model, n: int, n_tokens: int) -> float:
    """Tokens per second of n answers at once, after their prompts."""
    jobs = []
    for i in range(n):
        continuation = model.continuation(
            PROMPTS[i % len(PROMPTS)],
            max_tokens=n_tokens,
            temperature=1.0,
            seed=i,
            logit_bias={token: -np.inf for token in model.tokenizer.eog_ids},
        )
        jobs.append(Job(continuation, lambda piece: None, lambda error: None))
    with model.scheduler(0) as scheduler:
        scheduler.submit(*jobs)
        while not all(job.is_decoding for job in jobs):
            scheduler.step()
        n_before, start = scheduler.counts.n_generated_tokens, time.perf_counter()
        while scheduler.step():
            pass
        return (scheduler.counts.n_generated_tokens - n_before) / (time.perf_counter() - start)


def bytes_of_a_token(model: Model, n: int) -> tuple[float, float]:
    """Weights that one token reads, and that a step of n tokens reads, if routing is uniform."""
    dense, expert, hp = 0, 0, model.hparams
    with open_checkpoint(model.path) as checkpoint:
        names = list(checkpoint.tensors)
        for name in names:
            size = checkpoint.tensor(name).data.nbytes
            if "_exps" in name:
                expert += size
            elif name != "token_embd.weight" or "output.weight" not in names:
                dense += size
    return dense + expert * expert_share(hp, 1), dense + expert * expert_share(hp, n)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    options = {"threads": args.threads, "parallel": args.parallel, "n_ctx": args.tokens + 32, "device": "cpu"}
    with gguf_moe.load(args.model, **options) as model:
        one, several = bytes_of_a_token(model, args.parallel)
        limit = args.parallel * one / several
        run(model, args.parallel, 4)
        pairs = [
            (run(model, 1, args.tokens), run(model, args.parallel, args.tokens)) for _ in range(args.pairs)
        ]
    ratios = sorted(b / a for a, b in pairs)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    print(f"one: {statistics.median(a for a, _ in pairs):.1f} tok/s; "
          f"{args.parallel} at once: {statistics.median(b for _, b in pairs):.1f} tok/s")  # fmt: skip
    print(
        f"ratio {median:.2f} (quartiles {low:.2f} to {high:.2f}); what the distinct bytes allow: {limit:.2f}"
    )
    print(json.dumps({"ratio": median, "low": low, "high": high, "limit": limit, "pairs": pairs}))


if __name__ == "__main__":
    main()
