#!/usr/bin/env python3
"""Measure where the time of a token goes on the CPU: in each kind of task, and in waits between them.

  decode_times.py FILE -t 2
  decode_times.py FILE -t 2 --at-once 8

One line for each kind of task, all layers together, per step of --at-once tokens (medians):

  span     from the first thread's arrival until the last one's leaving, ms
  busy     the share of span in which threads compute, mean of all threads
  wait     until the next task begins: what threads wait for each other, mean of all threads, ms
  MB       weights read, of experts those that are expected to be chosen, and GB/s while the task lasts

The last line has a step without stopwatches.

The crew's program is that of the model, with each op inside a stopwatch (gguf_moe_kernels/cpu/stopwatch.py).
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gguf_moe
from gguf_moe.arch.hparams import HParams
from gguf_moe.checkpoint import ExpertTensors
from gguf_moe.graph.task import Op, Task
from gguf_moe.runtime.bandwidth import BandwidthMeter
from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.cpu.stopwatch import BUSY, FIRST, LAST, TIMES_SIZE

FIRST_TOKEN = 1000
MATRICES = (Op.MATMUL, Op.MATMUL_ID, Op.MATMUL_HEADS)


class Stopwatches:
    """One around each row of the table of a crew's program."""

    def __init__(self, table: np.ndarray, library: KernelLibrary, n_threads: int):
        self._table = table
        n_rows = len(self._table)
        self.times = np.zeros((n_rows, n_threads, TIMES_SIZE // 8), np.int64)
        self._arguments = np.zeros(n_rows, structs.STOPWATCH)
        self._arguments["function"], self._arguments["arguments"] = self._table[:, 0], self._table[:, 1]
        first = self.times.__array_interface__["data"][0]
        self._arguments["times"] = first + np.arange(n_rows) * self.times.strides[0]
        self._table[:, 0] = library.address("stopwatch.stopwatch")
        at = self._arguments.__array_interface__["data"][0]
        self._table[:, 1] = at + np.arange(n_rows) * self._arguments.itemsize

    def remove(self) -> None:
        """Give the program its own ops again."""
        self._table[:, 0], self._table[:, 1] = self._arguments["function"], self._arguments["arguments"]


def expert_share(hp: HParams, n_tokens: int) -> float:
    """The share of a layer's experts that so many tokens choose together, if routing is uniform."""
    return 1 - (1 - hp.n_expert_used / hp.n_expert) ** n_tokens if hp.n_expert else 0.0


def weight_bytes(task: Task, share: float) -> float:
    """Bytes of matrices that a step reads in this task, if it chooses such a share of the experts."""
    if task.op not in MATRICES:
        return 0.0
    weight = task.weights["weight"]
    return sum(weight.nbytes) * share if isinstance(weight, ExpertTensors) else weight.nbytes


def kind_of(task: Task) -> str:
    """The task's name without its layer, with the type of its weights."""
    name = re.sub(r"-\d+|_l\d+$", "", task.name)
    if task.op not in MATRICES:
        return name
    weight = task.weights["weight"]
    qtypes = weight.qtypes if isinstance(weight, ExpertTensors) else (weight.qtype,)
    return f"{name} {'/'.join(sorted({qtype.name for qtype in qtypes}))}"


def take_step(model: gguf_moe.Model, i: int, at_once: int) -> None:
    """So many tokens that are not those of the steps before."""
    model._context.extend([FIRST_TOKEN + at_once * i + j for j in range(at_once)], 1)


def measure_plain(model: gguf_moe.Model, n_steps: int, at_once: int) -> float:
    """ms of a step, the median."""
    seconds = []
    for i in range(n_steps):
        start = time.perf_counter()
        take_step(model, i, at_once)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


def measure(model: gguf_moe.Model, n_threads: int, n_steps: int, at_once: int) -> np.ndarray:
    """When each thread came to each row, when it left it, and how long it computed there: float64 in ms
    [n_steps, n_rows, n_threads, 3]."""
    watches = Stopwatches(model._context._runner._program.table, model._loaded.library, n_threads)
    seconds, watched = [], []
    for i in range(n_steps):
        watches.times[:] = 0
        take_step(model, i, at_once)
        seconds.append(time.perf_counter())
        watched.append(watches.times[..., [FIRST // 8, LAST // 8, BUSY // 8]].copy())
    watches.remove()
    ticks = watched[-1][-1, 0, 1] - watched[0][-1, 0, 1]
    return np.array(watched) * (1e3 * (seconds[-1] - seconds[0]) / float(ticks))


@dataclass
class Sums:
    """All tasks of a kind: ms of each step, float64 [n_steps]."""

    number: int = 0
    span: float | np.ndarray = 0.0
    busy: float | np.ndarray = 0.0
    wait: float | np.ndarray = 0.0
    megabytes: float = 0.0


def sums_by_kind(times: np.ndarray, tasks: list[Task], share: float) -> dict[str, Sums]:
    """Where the times of `measure` went."""
    first, last, busy = (times[..., i] for i in range(3))
    following = np.roll(first, -1, axis=1)
    following[:, -1] = last[:, -1].max(axis=1, keepdims=True)
    span, wait = last.max(axis=2) - first.min(axis=2), (following - last).mean(axis=2)
    kinds: dict[str, Sums] = defaultdict(Sums)
    for row, task in enumerate(tasks):
        kind = kinds[kind_of(task)]
        kind.number += 1
        kind.span += span[:, row]
        kind.busy += busy[:, row].mean(axis=1)
        kind.wait += wait[:, row]
        kind.megabytes += weight_bytes(task, share) / 1e6
    return kinds


def show(kinds: dict[str, Sums], step_ms: float) -> None:
    """The table, the longest first."""
    print(f"{'task':<30}{'number':>7}{'span':>9}{'busy':>7}{'wait':>8}{'MB':>9}{'GB/s':>7}")
    for name, kind in sorted(kinds.items(), key=lambda item: -np.median(item[1].span)):
        span, wait = np.median(kind.span), np.median(kind.wait)
        rate = f"{kind.megabytes:>9.1f}{kind.megabytes / span:>7.1f}" if kind.megabytes else ""
        share = 100 * np.median(kind.busy / kind.span)
        print(f"{name:<30}{kind.number:>7}{span:>9.3f}{share:>6.0f}%{wait:>8.3f}{rate}")
    number, megabytes = sum(k.number for k in kinds.values()), sum(k.megabytes for k in kinds.values())
    wait = np.median(sum(k.wait for k in kinds.values()))
    rate = f"{megabytes:>9.1f}{megabytes / step_ms:>7.1f}"
    print(f"{'a whole step':<30}{number:>7}{step_ms:>9.3f}{'':>7}{wait:>8.3f}{rate}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("-t", "--threads", type=int, nargs="*", default=[os.cpu_count()], help="(all cores)")
    p.add_argument("-n", "--n-predict", type=int, default=40, help="steps to measure (40)")
    p.add_argument("-d", "--depth", type=int, default=4, help="tokens before (4)")
    p.add_argument("--at-once", type=int, default=1, metavar="N", help="tokens of a step (1)")
    args = p.parse_args()
    if min(args.n_predict, args.depth, args.at_once) <= 0:
        raise SystemExit("--n-predict, --depth and --at-once must be positive")
    n_ctx = args.depth + 2 * args.n_predict * args.at_once
    for threads in args.threads:
        with gguf_moe.load(args.model, n_ctx=n_ctx, threads=threads, device="cpu") as model:
            model._context.extend([FIRST_TOKEN + i for i in range(args.depth)], 1)
            meter = BandwidthMeter(model._loaded.library)
            before = meter.measure(threads) / 1e9
            times = measure(model, threads, args.n_predict, args.at_once)
            plain = measure_plain(model, args.n_predict, args.at_once)
            after = meter.measure(threads) / 1e9
            print(f"{args.model.name}, {threads} threads; a read loop gets {before:.1f} and {after:.1f} GB/s")
            share = expert_share(model.hparams, args.at_once)
            show(sums_by_kind(times, model._context.graph.tasks, share), plain)


if __name__ == "__main__":
    main()
