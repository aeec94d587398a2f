"""The plan: sizes, placement and speed together, the limit that binds, and what would help."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import OptionError
from gguf_moe.experts.budget import default_context, parse_vram
from gguf_moe.options import Options
from gguf_moe.plan.placing import CUDA_BYTES, GpuShare, Sizes, gpu_share, sizes_of
from gguf_moe.plan.speed import Progress, Speed, keep_speed, measure, planned_speed
from gguf_moe.runtime import machine, placement

LARGEST_GPU = 10**13
USUAL_CONTEXT = 4096
NEAR_BANDWIDTH = 0.6
"""From this share of the read bandwidth on, memory is what decoding waits for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to expect of a file on this machine, or on one with other memory."""

    path: Path
    architecture: str
    hparams: HParams
    n_ctx: int
    kv_type: str
    n_threads: int
    sizes: Sizes
    memory: int
    """Bytes of main memory that are available."""
    gpu: GpuShare | None
    speed: Speed | None
    """On the CPU alone; None if it was not measured."""

    @property
    def fits(self) -> bool:
        """Whether nothing is read from disk again and again, and the GPU has room for what it must hold."""
        return self.memory_needed <= self.memory and (self.gpu is None or self.gpu.room >= 0)

    @property
    def memory_needed(self) -> int:
        """Bytes of main memory: the file, and the KV cache where it is not on the GPU."""
        return self.sizes.total - (self.sizes.kv_cache if self.gpu else 0)

    @property
    def decode(self) -> float | None:
        """Tokens per second. With a GPU, if experts were chosen evenly, and its own time did not count.

        None where the CPU does not set the pace.
        """
        if self.speed is None:
            return None
        if self.gpu is None:
            return self.speed.decode
        missed = (1 - self.gpu.share) * self.sizes.experts_per_token
        return self.speed.decode * self.sizes.per_token / missed if missed else None

    @property
    def bandwidth_share(self) -> float:
        """The share of the memory's read bandwidth that decoding on the CPU uses."""
        speed = self.speed
        return speed.decode * self.sizes.per_token / speed.bandwidth if speed else 0.0

    @property
    def limit(self) -> str:
        """What binds, in a few words."""
        if self.gpu and self.gpu.room < 0:
            return "GPU memory"
        if self.memory_needed > self.memory:
            return "main memory: weights would be read from disk for every token"
        if self.gpu and self.gpu.share == 1.0:
            return "the GPU"
        if self.speed is None:
            return "not measured"
        return "memory bandwidth" if self.bandwidth_share >= NEAR_BANDWIDTH else "the CPU's arithmetic"

    @property
    def advice(self) -> str:
        """What would help most, one sentence."""
        sizes, gpu = self.sizes, self.gpu
        if gpu and gpu.room < 0:
            return f"{-gpu.room / 1e9:.1f} GB more GPU memory, a smaller context (--ctx), or --device cpu."
        if self.memory_needed > self.memory:
            missing = (self.memory_needed - self.memory) / 1e9
            bits = self.memory / self.memory_needed
            return f"{missing:.1f} GB more memory, or a file of {100 * bits:.0f} % of the size (fewer bits)."
        if gpu and gpu.share == 1.0:
            return "nothing that this program could do: all experts are on the GPU."
        if not gpu and self.n_threads < machine.default_threads():
            return f"more threads: -t {machine.default_threads()}."
        if not gpu and self.speed and self.bandwidth_share < NEAR_BANDWIDTH:
            return "more or faster CPU cores; memory could give more than they take."
        if not sizes.experts:
            return "a file with fewer bits a weight; a dense model reads all weights for every token."
        if gpu:
            more = (1 - gpu.share) * sizes.experts
            return f"GPU memory for more experts; {more / 1e9:.1f} GB more would hold all."
        needed = sizes.always_used + sizes.kv_cache + sizes.experts / 4 + CUDA_BYTES
        return f"a GPU: with {needed / 1e9:.1f} GB it holds all but experts, and a quarter of those."


def make_plan(
    path: str | os.PathLike[str],
    options: Options,
    *,
    ram: str | None = None,
    measures: bool = True,
    again: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Plan for a file. options.vram asks for a GPU of that size, whether there is one or not.

    ram: main memory to plan for, as "32G"; None takes what is available. With `measures` some layers are run
    once; `again` forgets an earlier measurement. Raises what loading raises, but for too little memory.
    """
    memory = _memory(ram) if ram is not None else machine.available_memory()
    n_threads = options.threads or machine.default_threads()
    with open_checkpoint(path, mmap=options.mmap) as checkpoint:
        arch, hparams, weights = read_model(checkpoint)
        kind = placement.kv_kind(options.kv_type, hparams, weights)
        budget = _gpu_budget(options.vram)
        n_ctx = options.n_ctx or _context(hparams, placement.cache_bytes(hparams, 1, kind), budget)
        sizes = sizes_of(hparams, weights, n_ctx, kind)
        where = checkpoint.path
        speed = None if again else planned_speed(options.cache_dir, where, n_threads, kind)
        if speed is None and measures:
            speed = measure(
                arch,
                hparams,
                weights,
                n_threads=n_threads,
                kv_kind=kind,
                cache_dir=options.cache_dir,
                progress=progress,
            )
            keep_speed(options.cache_dir, where, n_threads, kind, speed)
        return Plan(
            path=where,
            architecture=arch.name,
            hparams=hparams,
            n_ctx=n_ctx,
            kv_type=kind.value,
            n_threads=n_threads,
            sizes=sizes,
            memory=memory,
            gpu=gpu_share(weights, sizes, budget) if budget else None,
            speed=speed,
        )


def _memory(ram: str) -> int:
    try:
        return parse_vram(ram, LARGEST_GPU)
    except OptionError:
        raise OptionError(f"the main memory is {ram!r}, but must be as 32G, 8000M or 12GiB.") from None


def _gpu_budget(vram: str | None) -> int | None:
    if vram is None:
        return None
    budget = parse_vram(vram, LARGEST_GPU)
    if not any(letter.isalpha() for letter in vram):  # a share, of a GPU that need not be there
        raise OptionError(f"the GPU memory is {vram!r}, but a plan needs its size, as 12G.")
    return budget


def _context(hparams: HParams, kv_bytes: int, budget: int | None) -> int:
    """A context when none is asked for: on a GPU what loading takes, else a usual one."""
    if budget:
        return default_context(budget, kv_bytes, hparams.n_ctx_train)
    return min(hparams.n_ctx_train, USUAL_CONTEXT)
