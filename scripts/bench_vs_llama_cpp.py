#!/usr/bin/env python3
"""Speed of gguf-moe and llama.cpp on the same file, taking turns in one run.

llama.cpp runs through llama-cpp-python under --peer-python. All stay loaded, each in its own process; for
every test they take turns, so that a busy machine slows both. Reported are medians of tok/s and of the pairs'
ratios (ours / llama.cpp's). The last line is one JSON object.

  pp N         a prompt of N tokens into an empty context
  tg N         N tokens one after the other
  tg N @ dD    the same after D tokens of context

Before and after each pair the read bandwidth is measured with as many threads. A pair whose two readings
differ by over 10 % does not count and is repeated.

llama.cpp has two settings, and each test meets the better one: weights repacked, not mapped and on huge pages
for tg (--peer-setting repack for all), weights as in the file for pp (--peer-setting no-repack for all).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol

PAUSE_S = 0.3
"""Between turns: the other side's threads stop spinning."""
FIRST_TOKEN, N_DISTINCT = 1000, 4000
TOLERANCE = 0.1
"""How far two readings of the bandwidth may be apart."""
MAX_TRIES = 4
"""As many pairs are measured at most for each one that should count."""
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Test:
    kind: str  # "pp" or "tg"
    n: int
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.n}" + (f" @ d{self.depth}" if self.depth else "")


class Engine(Protocol):
    """One loaded model."""

    def truncate(self, n: int) -> None: ...

    def extend(self, tokens: list[int]) -> None: ...


class Ours:
    def __init__(self, args: argparse.Namespace):
        import gguf_moe
        from gguf_moe.runtime.bandwidth import BandwidthMeter

        self._model = gguf_moe.load(args.model, n_ctx=args.ctx, threads=args.threads[0])
        self._context = self._model._context
        self._meter = BandwidthMeter(self._model._loaded.library)
        self._threads = args.threads[0]

    def truncate(self, n: int) -> None:
        self._context.truncate(n)

    def extend(self, tokens: list[int]) -> None:
        self._context.extend(tokens, 1)

    def bandwidth(self) -> float:
        """GB/s that as many threads can read."""
        return self._meter.measure(self._threads) / 1e9


class LlamaCpp:
    def __init__(self, args: argparse.Namespace):
        from llama_cpp import Llama, llama_cpp

        repack = args.peer_setting == "repack"
        defaults = llama_cpp.llama_model_default_params()
        defaults.use_extra_bufts = repack
        llama_cpp.llama_model_default_params = lambda: defaults  # the class has no argument for it
        threads = {"n_threads": args.threads[0], "n_threads_batch": args.threads[0]}
        self._model = Llama(
            str(args.model), n_ctx=args.ctx, n_batch=512, use_mmap=not repack, verbose=False, **threads
        )

    def truncate(self, n: int) -> None:
        """Forget all but n tokens; llama-cpp-python's own count goes along."""
        if n:
            self._model._ctx.kv_cache_seq_rm(-1, n, -1)
            self._model.n_tokens = n
        else:
            self._model.reset()

    def extend(self, tokens: list[int]) -> None:
        self._model.eval(tokens)


def tokens_from(start: int, n: int) -> list[int]:
    return [FIRST_TOKEN + (start + i) % N_DISTINCT for i in range(n)]


class Runner:
    """Runs tests on one engine; the context of a depth is kept from test to test."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._depth = 0

    def run(self, test: Test) -> float:
        """Seconds of one test."""
        depth = test.depth or (4 if test.kind == "tg" else 0)
        if depth != self._depth:
            self._engine.truncate(0)
            if depth:
                self._engine.extend(tokens_from(0, depth))
            self._depth = depth
        self._engine.truncate(depth)
        tokens = tokens_from(depth, test.n)
        start = time.perf_counter()
        if test.kind == "pp":
            self._engine.extend(tokens)
        else:
            for token in tokens:
                self._engine.extend([token])
        return time.perf_counter() - start


def serve(args: argparse.Namespace) -> None:
    """A side's process: tests on stdin, seconds on stdout; or "bandwidth", and GB/s."""
    engine: Any = Ours(args) if args.side == "ours" else LlamaCpp(args)
    runner = Runner(engine)
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words == ["bandwidth"]:
            print(engine.bandwidth(), flush=True)
        else:
            print(runner.run(Test(words[0], int(words[1]), int(words[2]))), flush=True)


class Side:
    """The process of one side."""

    def __init__(self, python: str, name: str, args: argparse.Namespace, threads: int, setting: str = ""):
        command = [python, __file__, str(args.model), "--side", name, "-t", str(threads)]
        command += ["--ctx", str(args.ctx), *(["--peer-setting", setting] if setting else [])]
        environment = os.environ | (HUGE_PAGES if setting == "repack" else {})
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._answer()

    def run(self, test: Test) -> float:
        """Tokens per second of one test."""
        time.sleep(PAUSE_S)
        return test.n / self._ask(f"{test.kind} {test.n} {test.depth}")

    def bandwidth(self) -> float:
        time.sleep(PAUSE_S)
        return self._ask("bandwidth")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, question: str) -> float:
        print(question, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args[:4]} ended early; run it by hand to see why")
        return answer


def measure(test: Test, ours: Side, peer: Side, n_pairs: int) -> dict[str, Any]:
    """One row: pairs until enough of them count."""
    for side in (ours, peer):
        side.run(Test(test.kind, min(test.n, 16), test.depth))
    pairs: list[tuple[float, float]] = []
    readings = [ours.bandwidth()]
    for _ in range(MAX_TRIES * n_pairs):
        pair = ours.run(test), peer.run(test)
        readings.append(ours.bandwidth())
        if abs(readings[-1] / readings[-2] - 1) <= TOLERANCE:
            pairs.append(pair)
        if len(pairs) == n_pairs:
            break
    row: dict[str, Any] = {"test": str(test), "valid_pairs": len(pairs), "read_gb_s": median(readings)}
    if pairs:
        ratios = [a / b for a, b in pairs]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        row |= {
            "ours": median(a for a, _ in pairs),
            "llama.cpp": median(b for _, b in pairs),
            "ratio": median(ratios),
            "quartiles": [low, high],
        }
    return row


def show(row: dict[str, Any]) -> None:
    if not row["valid_pairs"]:
        print(f"{row['test']:<16}no valid pair: the bandwidth changed all the time", flush=True)
        return
    low, high = row["quartiles"]
    speeds = f"{row['ours']:>9.2f}{row['llama.cpp']:>11.2f}{row['ratio']:>7.2f}   {low:.2f} .. {high:.2f}"
    print(f"{row['test']:<16}{speeds}{row['valid_pairs']:>7}{row['read_gb_s']:>9.1f}", flush=True)


def compare(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    tests = [Test("pp", n) for n in args.prompt]
    if args.n_predict:
        tests += [Test("tg", args.n_predict, depth) for depth in (0, *args.depth)]
    ours = Side(sys.executable, "ours", args, threads)
    settings = {t.kind: args.peer_setting or ("repack" if t.kind == "tg" else "no-repack") for t in tests}
    peers = {
        setting: Side(args.peer_python, "llama.cpp", args, threads, setting)
        for setting in dict.fromkeys(settings.values())
    }
    rows = []
    for test in tests:
        rows.append(measure(test, ours, peers[settings[test.kind]], args.repetitions))
        show(rows[-1])
    for side in (ours, *peers.values()):
        side.close()
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="has llama-cpp-python")
    p.add_argument("-p", "--prompt", type=int, nargs="*", default=[128], help="prompt lengths (128)")
    p.add_argument("-n", "--n-predict", type=int, default=32, help="tokens to generate (32; 0: none)")
    p.add_argument(
        "-d", "--depth", type=int, nargs="*", default=[], help="also generate after so many tokens"
    )
    p.add_argument(
        "-t", "--threads", type=int, nargs="*", default=[os.cpu_count()], help="of either side (all cores)"
    )
    p.add_argument("-r", "--repetitions", type=int, default=10, help="valid pairs for each test (10)")
    p.add_argument("--ctx", type=int, default=1024, help="context (1024)")
    p.add_argument("--peer-setting", choices=["repack", "no-repack"], help="one for all tests")
    p.add_argument("--side", choices=["ours", "llama.cpp"], help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.side:
        serve(args)
        return
    longest = max([*args.prompt, *(args.n_predict + depth + 4 for depth in (0, *args.depth))])
    if longest > args.ctx:
        raise SystemExit(f"--ctx {args.ctx} is too small for {longest} tokens")
    results = []
    for threads in args.threads:
        print(
            f"{args.model.name}, {threads} threads; tok/s, medians; read: GB/s that as many threads can read"
        )
        print(f"{'test':<16}{'ours':>9}{'llama.cpp':>11}{'ratio':>7}   quartiles{'pairs':>8}{'read':>9}")
        results.append({"threads": threads, "rows": compare(args, threads)})
    print(json.dumps({"model": args.model.name, "peer_setting": args.peer_setting, "results": results}))


if __name__ == "__main__":
    main()
