"""One of our processes for bench_gpu.py: decodes along a trace, and prints what came of it."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import synthetic_routing

from gguf_moe.runtime.context import Context

N_COLD, N_WARM_UP, N_PART, N_PARTS = 64, 192, 64, 4
LIMIT_S, WARM_UP_LIMIT_S = 3.0, 12.0
TOKEN = 1000


@dataclass(frozen=True)
class Config:
    """What differs between arms."""

    model: str = ""
    """A key of synthetic_routing.SHAPES."""
    n_layer: int = 0
    n_ctx: int = 1024
    vram: str | None = None
    share: float | None = None
    """Of each layer's experts; instead of vram."""
    policy: str = "decayed"
    uniform: bool = False
    max_in_flight: int | None = None
    registered: bool = True
    """The GPU reads the file where it lies; else the driver copies through memory of its own."""
    overlap: bool = True
    """Uploads run beside the next step; else it waits for them."""
    link: str = "measured"
    """Whether missing down matrices come over the link within a step: measured, always or never."""
    threads: int | None = None


def start(stack: ExitStack, file: Path, config: Config) -> Context:
    """A context on the GPU with room for as many experts as the config says, some expert in each slot."""
    from gguf_moe.arch.model import read_model
    from gguf_moe.checkpoint import open_checkpoint
    from gguf_moe.experts.routing import Replay, Routing
    from gguf_moe.options import default_cache_dir
    from gguf_moe.runtime import machine, placement
    from gguf_moe.runtime.context import Context
    from gguf_moe.runtime.crew import kernels_of
    from gguf_moe.runtime.gpu.device import CudaDevice
    from gguf_moe.runtime.gpu.link import measured_rates
    from gguf_moe.runtime.gpu.placement import GpuBudget, allocate_slots, register_file
    from gguf_moe_kernels.cpu.library import KernelLibrary

    checkpoint = stack.enter_context(open_checkpoint(file))
    arch, hparams, weights = read_model(checkpoint)
    shape = synthetic_routing.SHAPES[config.model]
    n_steps = N_COLD + N_WARM_UP + N_PART * N_PARTS
    ids = synthetic_routing.trace(shape, config.n_layer, n_steps, 1, uniform=config.uniform)
    device = CudaDevice(0, default_cache_dir())
    budget = GpuBudget(device, config.vram)
    library = stack.enter_context(closing(KernelLibrary(default_cache_dir())))
    context = Context(
        arch,
        hparams,
        weights,
        n_ctx=config.n_ctx,
        n_batch=32,
        kv_kind=placement.kv_kind(None, hparams, weights),
        replay=Replay(Routing(ids, shape.n_expert)),
    )
    stack.enter_context(closing(context))
    threads = config.threads or machine.default_threads(beside_gpu=True)
    registered = config.registered and register_file(device, checkpoint)
    use_link = registered and config.link != "never"
    rates = measured_rates(device, checkpoint, library, threads) if use_link else None
    runner = context.prepare_gpu(device, threads, config.policy, prompt_bytes=0, rates=rates)
    if rates and config.link == "always":
        runner.trial = Always(1)
    device.prepare(runner.kernels, None)
    library.prepare([*kernels_of(runner.rows), runner.embedding_kernel], None)
    if config.share is None:
        allocate_slots(runner, budget)
    else:
        runner.allocate_slots([round(config.share * shape.n_expert)] * len(runner.slots.memory.sizes))
    if config.max_in_flight:
        runner.slots.cache.max_in_flight = config.max_in_flight
    context.start_gpu(runner, library)
    runner.slots.fill()
    return context


class Always:
    """In the place of a Trial: one way for all steps."""

    def __init__(self, way: int):
        self.way = self.best = way

    def took(self, seconds: float) -> None:
        pass


def decode(context: Context, n: int, overlap: bool, limit_s: float = LIMIT_S) -> float:
    """Tokens per second of n tokens, or of as many as there is time for."""
    assert context.gpu is not None
    begin, done = time.perf_counter(), 0
    while done < n and (not done or time.perf_counter() - begin < limit_s):
        context.extend([TOKEN], 1)
        if not overlap:
            context.gpu.slots.settle()
        done += 1
    return done / (time.perf_counter() - begin)


def measure(file: Path, config: Config) -> dict[str, Any]:
    """Cold and warm speeds, and what the cache did while it was warm."""
    with ExitStack() as stack:
        begin = time.perf_counter()
        context = start(stack, file, config)
        load_s = time.perf_counter() - begin
        assert context.gpu is not None
        cold = decode(context, N_COLD, config.overlap)
        decode(context, N_WARM_UP, config.overlap, WARM_UP_LIMIT_S)
        earlier = context.gpu.usage()
        warm = [decode(context, N_PART, config.overlap) for _ in range(N_PARTS)]
        usage = context.gpu.usage() - earlier
        return {
            "load_s": load_s,
            "cold": cold,
            "warm": warm,
            "slots_per_layer": list(context.gpu.slots.cache.slots_per_layer),
            "threads": context.gpu.n_threads,
            "uses_link": context.gpu.uses_link,
            "config": asdict(config),
            "usage": asdict(usage),
            "hit_rate": usage.hit_rate,
            "misses_per_token": usage.misses_per_token,
            "uploaded_bytes_per_token": usage.uploaded_bytes_per_token,
            "gpu_share": usage.gpu_share,
            "cpu_share": usage.cpu_share,
        }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Config(**json.loads(sys.argv[2])))))
