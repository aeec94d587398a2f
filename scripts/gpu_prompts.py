#!/usr/bin/env python3
"""The speed of long prompts on a GPU that holds a part of the experts: each way on the same random tokens.

  gpu_prompts.py FILE [--share 0.4] [--tokens 512 2048] [--memory 1600] [--crew]
  gpu_prompts.py FILE --llama-bench PROGRAM --n-cpu-moe 19

FILE is one of those of `make_model.py full`. The first run of each length is not counted. With --crew the
same tokens also go the way of short prompts, where the CPU computes what the GPU does not hold. The logits of
both ways must have the same bits. With --llama-bench llama.cpp follows in the same run, with the experts of
all layers but the first --n-cpu-moe on the GPU and the others' in pinned memory, its best setting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import numpy as np

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.options import default_cache_dir
from gguf_moe.runtime import machine, placement
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu.device import CudaDevice
from gguf_moe.runtime.ready import prepare_gpu
from gguf_moe_kernels.cpu.library import KernelLibrary

PEER_LIMIT_S = 180


def start(stack: ExitStack, file: Path, share: float, n_ctx: int, prompt_bytes: int) -> Context:
    """A context with room for this share of the experts; without prompt_bytes nothing is streamed."""
    checkpoint = stack.enter_context(open_checkpoint(file))
    arch, hparams, weights = read_model(checkpoint)
    library = stack.enter_context(closing(KernelLibrary(default_cache_dir())))
    kind = placement.kv_kind(None, hparams, weights)
    context = Context(arch, hparams, weights, n_ctx=n_ctx, n_batch=512, kv_kind=kind)
    stack.enter_context(closing(context))
    device, threads = CudaDevice(0, default_cache_dir()), machine.default_threads(beside_gpu=True)
    runner, _ = prepare_gpu(
        context, device, checkpoint, library, threads, "decayed", None, prompt_bytes=prompt_bytes
    )
    n_layer, n = len(runner.slots.memory.sizes), share * hparams.n_expert
    runner.allocate_slots([int((il + 1) * n) - int(il * n) for il in range(n_layer)])
    context.start_gpu(runner, library)
    runner.slots.fill()
    return context


def measure(context: Context, tokens: list[int], runs: int) -> tuple[float, np.ndarray]:
    """Seconds of a run, the median of all but the first, and the last token's logits."""
    seconds = []
    for _ in range(runs + 1):
        context.truncate(0)
        begin = time.perf_counter()
        logits = context.extend(tokens, 1).copy()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:]), logits


def measure_peer(args: argparse.Namespace) -> dict[int, float]:
    """Tokens per second of llama.cpp for each length: the median of its runs, a whole prompt in one batch."""
    found = {}
    for n in args.tokens:
        options = {"-m": args.file, "-p": n, "-n": 0, "-b": n, "-ub": n, "-r": args.runs, "-ngl": 99}
        options |= {"-ncmoe": args.n_cpu_moe, "-fa": 1, "-t": args.threads, "-lm": "none", "-o": "json"}
        command = [args.llama_bench, *(str(word) for option in options.items() for word in option)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PEER_LIMIT_S)
        found[n] = median(json.loads(done.stdout)[0]["samples_ts"])
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, metavar="FILE")
    p.add_argument("--share", type=float, default=0.4, help="of the experts on the GPU (0.4)")
    p.add_argument("--tokens", type=int, nargs="+", default=[512, 2048], help="lengths of prompts (512 2048)")
    p.add_argument("--memory", type=float, default=1600, help="MB of GPU memory for long prompts (1600)")
    p.add_argument("--crew", action="store_true", help="also without streaming")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--llama-bench", metavar="PROGRAM", help="llama.cpp's, to be measured too")
    p.add_argument("--n-cpu-moe", type=int, default=0, help="layers of llama.cpp's experts on the CPU (0)")
    p.add_argument("--threads", type=int, default=16, help="of llama.cpp (16)")
    args = p.parse_args()
    expected: dict[int, np.ndarray] = {}
    speeds: dict[int, float] = {}
    for name, memory in (("streamed", args.memory), ("by the crew", 0.0))[: 1 + args.crew]:
        with ExitStack() as stack:
            n_ctx = max(args.tokens) + 1
            context = start(stack, args.file, args.share, n_ctx, int(memory * 1e6))
            for n in args.tokens:
                tokens = np.random.default_rng(n).integers(0, 1000, n).tolist()
                seconds, logits = measure(context, tokens, args.runs)
                speeds.setdefault(n, n / seconds)
                same = np.array_equal(expected.setdefault(n, logits), logits)
                print(f"{n:>6} tokens {name:<12}{n / seconds:>9.0f} tok/s, {1e3 * seconds:.0f} ms", end="")
                print("" if same else "; the logits differ", flush=True)
    for n, speed in measure_peer(args).items() if args.llama_bench else ():
        print(f"{n:>6} tokens llama.cpp   {speed:>9.0f} tok/s; ratio {speeds[n] / speed:.2f}", flush=True)


if __name__ == "__main__":
    main()
