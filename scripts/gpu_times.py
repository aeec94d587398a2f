#!/usr/bin/env python3
"""Measure how long a GPU takes for a token, and each kind of kernel in it.

  gpu_times.py FILE --resident 1 0.4 --routing qwen3-30b-a3b

Tokens are random, and go to the experts that the file's routers choose. Where some experts are not on the GPU
and --routing is given, they go to those of a synthetic trace (synthetic_routing.py). The first tokens warm
the cache up and are not counted. Kernels are timed one kind at a time: all launches of a step that have its
name, one behind the other, so that each finds its weights in the GPU's memory and not in its cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
from synthetic_routing import SHAPES, trace

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.cli.workers import fill_cache
from gguf_moe.experts.routing import Replay, Routing
from gguf_moe.graph.task import Kind
from gguf_moe.options import default_cache_dir
from gguf_moe.runtime import machine
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.crew import kernels_of
from gguf_moe.runtime.gpu.device import CudaDevice, Device, wait
from gguf_moe.runtime.gpu.hybrid import StepProgram
from gguf_moe.runtime.gpu.placement import register_file
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe_kernels.cpu.library import KernelLibrary

REPLAYS = 30
"""Of a graph that is timed."""
LIMIT_S = 60.0


class Timed:
    """A file on the GPU, with room for a share of the experts of each layer. Close it."""

    def __init__(self, path: Path, device: Device, share: float, routing: str | None, n_ctx: int):
        self._checkpoint = open_checkpoint(path)
        arch, hp, weights = read_model(self._checkpoint)
        replay = None
        if routing and share < 1:
            ids = trace(SHAPES[routing], hp.n_layer, 1024, seed=1)
            replay = Replay(Routing(ids.astype(np.uint16), hp.n_expert))
        self.n_vocab = hp.n_vocab
        self.context = Context(arch, hp, weights, n_ctx=n_ctx, n_batch=32, kv_kind=Kind.F16, replay=replay)
        self.device = device
        self.library = KernelLibrary(default_cache_dir(), fill_cache)
        self.runner: GpuRunner = self.context.prepare_gpu(
            device, machine.default_threads(beside_gpu=True), "decayed", prompt_bytes=0
        )
        device.prepare(self.runner.kernels, None)
        self.library.prepare([*kernels_of(self.runner.rows), self.runner.embedding_kernel], None)
        register_file(device, self._checkpoint)
        slots = round(share * self.runner.slots.n_expert)
        self.runner.allocate_slots([slots] * sum(block.experts is not None for block in weights.blk))
        self.context.start_gpu(self.runner, self.library)
        self.runner.slots.fill()

    def close(self) -> None:
        self.context.close()
        self.library.close()
        self._checkpoint.close()

    def tokens(self, n_depth: int, n_warm: int, n: int) -> list[float]:
        """Seconds of each of n tokens behind n_depth others."""
        ids = np.random.default_rng(0).integers(0, self.n_vocab, n_depth + n_warm + n).tolist()
        self.context.extend(ids[:n_depth], 1)
        times = []
        for token in ids[n_depth:]:
            start = time.perf_counter()
            self.context.extend([token], 1)
            times.append(time.perf_counter() - start)
        return times[n_warm:]

    def kernels(self) -> dict[str, tuple[int, float]]:
        """Of a step for one token: how many launches a kernel has, and seconds of one of them."""
        program = self.runner.programs[1]
        by_name = defaultdict(list)
        for launch in program.launches:
            by_name[launch.kernel].append(launch)
        found = {}
        for name, launches in by_name.items():
            found[name] = len(launches), self._replayed(program, launches) / len(launches)
        return found

    def _replayed(self, program: StepProgram, launches: list) -> float:
        """Seconds of a graph of these launches, one behind the other."""
        device, stream = self.device, self.device.stream()

        def queue() -> None:
            for launch in launches:
                program.launch(stream, launch)

        graph = device.capture(stream, queue)
        for n in (2, REPLAYS):
            start = time.perf_counter()
            for _ in range(n):
                device.replay(stream, graph)
            wait(device, stream, LIMIT_S)
        return (time.perf_counter() - start) / REPLAYS


def report(timed: Timed, share: float, args: argparse.Namespace) -> None:
    seconds = timed.tokens(args.depth, args.warm, args.tokens)
    middle = statistics.median(seconds)
    mean = statistics.fmean(seconds)
    print(f"{args.file.name}, {share:.0%} of the experts on the GPU, {args.depth} tokens before:")
    print(f"  a token: median {1e3 * middle:.3f} ms ({1 / middle:.1f} tok/s), mean {1e3 * mean:.3f} ms")
    if share < 1 or not args.kernels:
        return
    kernels = sorted(timed.kernels().items(), key=lambda item: -item[1][0] * item[1][1])
    print(f"  {'kernel':44}{'launches':>9}{'us each':>9}{'ms all':>9}")
    for name, (n, each) in kernels:
        print(f"  {name:44}{n:9}{1e6 * each:9.2f}{1e3 * n * each:9.3f}")
    n_all = sum(n for _, (n, _) in kernels)
    print(f"  {'all':44}{n_all:9}{'':9}{1e3 * sum(n * each for _, (n, each) in kernels):9.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--resident", type=float, nargs="+", default=[1.0], help="shares of the experts (1)")
    parser.add_argument("--routing", choices=SHAPES, metavar="MODEL", help=", ".join(SHAPES))
    parser.add_argument("--depth", type=int, default=256, help="tokens before (256)")
    parser.add_argument("--warm", type=int, default=64, help="tokens that are not counted (64)")
    parser.add_argument("--tokens", type=int, default=128, help="(128)")
    parser.add_argument("--kernels", action="store_true", help="also time each kind of kernel")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (0)")
    args = parser.parse_args()
    n_ctx = args.depth + args.warm + args.tokens
    for share in args.resident:
        device = CudaDevice(args.device, default_cache_dir())
        with closing(Timed(args.file, device, share, args.routing, n_ctx)) as timed:
            report(timed, share, args)


if __name__ == "__main__":
    main()
