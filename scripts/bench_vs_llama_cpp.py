#!/usr/bin/env python3
"""Speed of gguf-moe and llama.cpp on the same file, taking turns in one run.

llama.cpp runs through llama-cpp-python under --peer-python. Both stay loaded, each in its own process; for
every test they take turns, so that a busy machine slows both. Reported are medians of tok/s and of the pairs'
ratios (ours / llama.cpp's). The last line is one JSON object.

  pp N    a prompt of N tokens into an empty context
  tg N    N tokens one after the other
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

PAUSE_S = 0.3
"""Between turns: the other side's threads stop spinning."""
FIRST_TOKEN = 1000


class Engine(Protocol):
    """One loaded model."""

    def reset(self) -> None: ...

    def extend(self, tokens: list[int]) -> None: ...


class Ours:
    def __init__(self, args: argparse.Namespace):
        import gguf_moe

        self._model = gguf_moe.load(args.model, n_ctx=args.ctx, threads=args.threads)
        self._context = self._model._context

    def reset(self) -> None:
        self._context.truncate(0)

    def extend(self, tokens: list[int]) -> None:
        self._context.extend(tokens, 1)


class LlamaCpp:
    def __init__(self, args: argparse.Namespace):
        from llama_cpp import Llama, llama_cpp

        defaults = llama_cpp.llama_model_default_params()
        defaults.use_extra_bufts = args.repack
        llama_cpp.llama_model_default_params = lambda: defaults  # the class has no argument for it
        threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
        self._model = Llama(str(args.model), n_ctx=args.ctx, n_batch=512, verbose=False, **threads)

    def reset(self) -> None:
        self._model.reset()

    def extend(self, tokens: list[int]) -> None:
        self._model.eval(tokens)


def run_test(engine: Engine, kind: str, n: int) -> float:
    """Seconds of one test."""
    tokens = [FIRST_TOKEN + i for i in range(n)]
    engine.reset()
    if kind == "tg":
        engine.extend([1, 2, 3, 4])
    start = time.perf_counter()
    if kind == "pp":
        engine.extend(tokens)
    else:
        for token in tokens:
            engine.extend([token])
    return time.perf_counter() - start


def serve(args: argparse.Namespace) -> None:
    """A side's process: tests on stdin, seconds on stdout."""
    engine: Engine = Ours(args) if args.side == "ours" else LlamaCpp(args)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, n = line.split()
        print(run_test(engine, kind, int(n)), flush=True)


class Side:
    """The process of one side."""

    def __init__(self, python: str, name: str, args: argparse.Namespace):
        command = [python, __file__, str(args.model), "--side", name]
        command += ["-t", str(args.threads), "--ctx", str(args.ctx), *(["--repack"] if args.repack else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
        )
        self._answer()

    def run(self, kind: str, n: int) -> float:
        """Tokens per second of one test."""
        time.sleep(PAUSE_S)
        print(kind, n, file=self._process.stdin, flush=True)
        return n / float(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> str:
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args[:4]} ended early; run it by hand to see why")
        return answer


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    sides = Side(sys.executable, "ours", args), Side(args.peer_python, "llama.cpp", args)
    tests = [("pp", n) for n in args.prompt] + [("tg", args.n_predict)]
    rows = []
    for kind, n in tests:
        for side in sides:
            side.run(kind, min(n, 16))
        pairs = [[side.run(kind, n) for side in sides] for _ in range(args.repetitions)]
        ratios = [ours / theirs for ours, theirs in pairs]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        row = {
            "test": f"{kind} {n}",
            "ours": median(pair[0] for pair in pairs),
            "llama.cpp": median(pair[1] for pair in pairs),
            "ratio": median(ratios),
            "quartiles": [low, high],
        }
        rows.append(row)
        speeds = f"{row['ours']:>10.2f}{row['llama.cpp']:>12.2f}{row['ratio']:>8.2f}"
        print(f"{row['test']:<10}{speeds}   {low:.2f} .. {high:.2f}", flush=True)
    for side in sides:
        side.close()
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="has llama-cpp-python")
    p.add_argument("-p", "--prompt", type=int, nargs="*", default=[128], help="prompt lengths (128)")
    p.add_argument("-n", "--n-predict", type=int, default=32, help="tokens to generate (32)")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="of either side (all cores)")
    p.add_argument("-r", "--repetitions", type=int, default=5, help="pairs for each test (5)")
    p.add_argument("--ctx", type=int, default=1024, help="context (1024)")
    p.add_argument("--repack", action="store_true", help="let llama.cpp repack weights (its faster decode)")
    p.add_argument("--side", choices=["ours", "llama.cpp"], help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.side:
        serve(args)
        return
    print(f"{'test':<10}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}   quartiles   (tok/s, medians)")
    rows = compare(args)
    print(
        json.dumps({"model": args.model.name, "threads": args.threads, "repack": args.repack, "rows": rows})
    )


if __name__ == "__main__":
    main()
