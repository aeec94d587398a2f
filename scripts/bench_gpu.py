#!/usr/bin/env python3
"""Decoding on a GPU with a part of the experts there: gguf-moe beside llama.cpp at equal GPU memory.

  bench_gpu.py run --models DIR --llama-bench PROGRAM --out FILE [--plan NAME ...] [--seconds 500]

The files are those of `make_model.py full`, DIR/MODEL.gguf. Random weights route almost at random, so tokens
go along a synthetic trace (synthetic_routing.py); llama.cpp's placement does not care about routing. Each arm
is a process of its own, whose peak of GPU memory is measured, CUDA's context included. llama.cpp keeps the
experts of all layers but the first --n-cpu-moe on the GPU; what it took at its peak is our --vram. It runs
once with the file mapped and once with the CPU's weights in pinned memory, and the faster one counts.

Cold: the first 64 tokens, when each slot holds any expert. Warm: 256 tokens after the first 256, in 4 parts
of at most 3 s.
A plan is a list of arms, the most important first; arms that cannot begin within --seconds are left out.
Results are one JSON object a line in FILE, and a table on stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import gpu_arm
from gpu_memory import PeakMemory

ARM_LIMIT_S = 120
LOAD_MODES = ("mmap", "none")
"""llama.cpp's --load-mode: the file mapped, or its weights copied to memory that the GPU can reach."""
LAYERS = {"mixtral-8x7b": 32, "qwen3-30b-a3b": 48, "gpt-oss-20b": 24}
N_CPU_MOE = {
    "mixtral-8x7b": {40: 19, 25: 24, 12.5: 28, 0: 32, 100: 0},
    "qwen3-30b-a3b": {40: 29, 25: 36, 10: 43, 0: 48, 100: 0},
    "gpt-oss-20b": {40: 14, 25: 18, 0: 24, 100: 0},
}
"""Share of the experts on the GPU, in per cent -> llama.cpp's --n-cpu-moe."""


@dataclass(frozen=True)
class Arm:
    """One process: llama.cpp where `n_cpu_moe` is given, else ours with what gpu_arm.Config says."""

    name: str
    model: str
    n_cpu_moe: int | None = None
    like: str | None = None
    """The arm whose peak of GPU memory is this one's --vram."""
    config: gpu_arm.Config | None = None


def decode_plan(model: str, shares: tuple[float, ...]) -> Iterator[Arm]:
    """Both sides at equal memory."""
    for share in shares:
        peer = f"{model} llama.cpp {share:g} %"
        yield Arm(peer, model, n_cpu_moe=N_CPU_MOE[model][share])
        yield Arm(f"{model} ours {share:g} %", model, like=peer, config=gpu_arm.Config())


def shares_plan(model: str, shares: tuple[float, ...]) -> Iterator[Arm]:
    """Ours alone, by the share of the experts that is there."""
    for share in shares:
        yield Arm(f"{model} ours, {share:g} % there", model, config=gpu_arm.Config(share=share / 100))


def ends_plan(model: str) -> Iterator[Arm]:
    """Everything on the GPU, and no expert there."""
    yield Arm(f"{model} ours 100 %", model, config=gpu_arm.Config(share=1.0))
    yield Arm(f"{model} llama.cpp 100 %", model, n_cpu_moe=0)
    yield Arm(f"{model} ours 0 %", model, config=gpu_arm.Config(share=0.0))
    yield Arm(f"{model} llama.cpp 0 %", model, n_cpu_moe=N_CPU_MOE[model][0])


def link_plan(model: str) -> Iterator[Arm]:
    """The CPU alone, and with the link beside it, for all missing experts and for those of a cache."""
    for share in (0.4, 0.0):
        for link in ("never", "always"):
            config = gpu_arm.Config(share=share, link=link)
            yield Arm(f"{model} {100 * share:g} % link {link}", model, config=config)


def uniform_plan(model: str) -> Iterator[Arm]:
    """The adverse case: routing at random."""
    for share in (0.11, 0.0):
        config = gpu_arm.Config(share=share, uniform=True)
        yield Arm(f"{model} uniform {100 * share:g} %", model, config=config)


def protocol_plan(model: str) -> Iterator[Arm]:
    """From the protocol of arXiv 2512.16473 to ours, one difference at a time; a quarter is there."""
    paper = gpu_arm.Config(
        share=0.25, policy="fifo", max_in_flight=1 << 20, registered=False, overlap=False, link="never"
    )
    steps = {
        "paper's protocol": paper,
        "and pinned copies": replace(paper, registered=True),
        "and overlap": replace(paper, registered=True, overlap=True),
        "and admission": gpu_arm.Config(share=0.25, link="never"),
        "and the link in the step: ours": gpu_arm.Config(share=0.25),
    }
    for name, config in steps.items():
        yield Arm(f"{model} {name}", model, config=config)


def threads_plan(model: str) -> Iterator[Arm]:
    """How many threads the crew should have, when it has all experts."""
    for threads in (7, 8, 12, 15, 16):
        yield Arm(f"{model} {threads} threads", model, config=gpu_arm.Config(share=0.0, threads=threads))


def headline_plan() -> Iterator[Arm]:
    """Mixtral within 12 GB, 4096 positions; llama.cpp with as many layers' experts as fit there."""
    model = "mixtral-8x7b"
    yield Arm(f"{model} llama.cpp, 11 layers' experts", model, n_cpu_moe=21)
    config = gpu_arm.Config(vram="12G", n_ctx=4096)
    yield Arm(f"{model} ours 12G", model, config=config)


def plans() -> dict[str, list[Arm]]:
    """All plans by name."""
    found: dict[str, list[Arm]] = {"headline": list(headline_plan())}
    for model, shares in (
        ("mixtral-8x7b", (40, 25, 12.5)),
        ("qwen3-30b-a3b", (40, 25, 10)),
        ("gpt-oss-20b", (40, 25)),
    ):
        short = model.split("-")[0]
        found[f"{short}-decode"] = list(decode_plan(model, shares))
        found[f"{short}-shares"] = list(shares_plan(model, shares))
        found[f"{short}-ends"] = list(ends_plan(model))
        found[f"{short}-uniform"] = list(uniform_plan(model))
        found[f"{short}-protocol"] = list(protocol_plan(model))
        found[f"{short}-link"] = list(link_plan(model))
        found[f"{short}-threads"] = list(threads_plan(model))
    return found


def run_llama(program: Path, file: Path, n_cpu_moe: int, threads: int) -> dict[str, Any]:
    """llama-bench, decoding 64 tokens three times, with the better way to hold the CPU's weights."""
    options = {"-m": file, "-ngl": 99, "-ncmoe": n_cpu_moe, "-fa": 1, "-t": threads, "-p": 0, "-n": 64}
    options |= {"-r": 3, "-o": "json"}
    command = [str(program), *(str(word) for option in options.items() for word in option)]
    samples = {}
    for mode in LOAD_MODES if n_cpu_moe else LOAD_MODES[:1]:
        done = subprocess.run(
            [*command, "-lm", mode], capture_output=True, text=True, check=True, timeout=ARM_LIMIT_S
        )
        samples[mode] = json.loads(done.stdout)[0]["samples_ts"]
    return {"warm": max(samples.values(), key=median), "load_modes": samples}


def run_ours(file: Path, config: gpu_arm.Config) -> dict[str, Any]:
    """One of our processes."""
    command = [sys.executable, gpu_arm.__file__, str(file), json.dumps(asdict(config))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ARM_LIMIT_S)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> None:
    """The arms of the plans, until the time is over."""
    start, peaks, known = time.monotonic(), {}, plans()
    print(f"{'arm':<44}{'cold':>8}{'warm':>8}{'peak':>9}{'hits':>7}{'misses':>8}", flush=True)
    with args.out.open("a") as out:
        for arm in (arm for name in args.plan for arm in known[name]):
            is_peer_missing = arm.config is None and not args.llama_bench
            is_late = time.monotonic() - start > args.seconds
            if is_late or is_peer_missing or (arm.like and arm.like not in peaks):
                print(f"{arm.name:<44} left out", flush=True)
                continue
            file = args.models / f"{arm.model}.gguf"
            try:
                with PeakMemory() as memory:
                    if arm.config is None:
                        result = run_llama(args.llama_bench, file, arm.n_cpu_moe or 0, args.threads)
                    else:
                        vram = f"{peaks[arm.like] // 10**6}M" if arm.like else arm.config.vram
                        config = replace(arm.config, vram=vram, model=arm.model, n_layer=LAYERS[arm.model])
                        result = run_ours(file, config)
            except (RuntimeError, subprocess.SubprocessError, OSError) as e:
                print(f"{arm.name:<44} failed: {e}\n{getattr(e, 'stderr', '')}"[-3000:], flush=True)
                continue
            peaks[arm.name] = memory.peak
            result |= {"arm": arm.name, "peak": memory.peak}
            out.write(json.dumps(result) + "\n")
            out.flush()
            show(result)


def show(result: dict[str, Any]) -> None:
    """A line of the table: medians of tok/s, GB."""
    cold = f"{result['cold']:>8.1f}" if "cold" in result else " " * 8
    line = f"{result['arm']:<44}{cold}{median(result['warm']):>8.1f}{result['peak'] / 1e9:>7.2f}G "
    if "load_modes" in result:
        line += ", ".join(f"{mode} {median(samples):.1f}" for mode, samples in result["load_modes"].items())
    if "hit_rate" in result:
        line += f"{100 * result['hit_rate']:>6.1f}%{result['misses_per_token']:>8.1f}"
        line += f"   {result['uploaded_bytes_per_token'] / 1e6:.1f} MB"
        line += f", GPU {100 * result['gpu_share']:.0f} %, CPU {100 * result['cpu_share']:.0f} %"
        line += f", {result['threads']} threads, link {result['uses_link']}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("run", help="run arms")
    p.add_argument("--models", type=Path, required=True, metavar="DIR")
    p.add_argument("--llama-bench", type=Path, metavar="PROGRAM", help="without it, ours alone")
    p.add_argument("--out", type=Path, required=True, metavar="FILE")
    p.add_argument("--plan", nargs="+", choices=plans(), default=list(plans()), metavar="NAME")
    p.add_argument("--seconds", type=float, default=1e9, help="begin no arm later than this")
    p.add_argument("--threads", type=int, default=16, help="of llama.cpp (16)")
    p.set_defaults(command=run)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
