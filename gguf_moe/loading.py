"""From a file and options to the parts of a model: what the file says, and a context that can compute."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from gguf_moe.arch.model import read_model
from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Checkpoint, open_checkpoint
from gguf_moe.experts.heat import HeatOwner, load_heat
from gguf_moe.graph.task import Kind
from gguf_moe.options import Options
from gguf_moe.runtime import machine, placement
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu import placement as gpu_placement
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.placement import GpuBudget
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.ready import prepare_gpu, start_on_cpu, start_on_gpu
from gguf_moe.text.chat_template import ChatTemplate, find_chat_template
from gguf_moe.text.tokenizer import Tokenizer, build_tokenizer
from gguf_moe_kernels.cpu.library import FillCache, KernelLibrary

Progress = Callable[[str, int, int], None]
"""Called with the stage ("reading", "compiling", "prompt"), how much is done, and how much there is to do."""


@dataclass(slots=True)
class LoadTimes:
    """Seconds that loading took; `compile_s` is part of `load_s`."""

    load_s: float = 0.0
    compile_s: float = 0.0
    n_compiled: int = 0
    is_kept: bool = False
    """Whether the cache on disk has what was compiled."""


class Loaded:
    """The parts of a model, ready for work. `close` joins the threads and frees the memory."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: Options,
        progress: Progress | None = None,
        fill_cache: FillCache | None = None,
    ):
        """Arguments and errors as for Model. What was opened is closed again if loading fails."""
        start = time.perf_counter()
        gpu_placement.check_options(options.vram, options.policy)
        self.times = LoadTimes()
        self.checkpoint: Checkpoint = open_checkpoint(
            path, mmap=options.mmap, progress=stage_of(progress, "reading")
        )
        with ExitStack() as opened:
            opened.callback(self.checkpoint.close)
            weights = self._read(options)
            self.kv_kind: Kind = placement.kv_kind(options.kv_type, self.hparams, weights)
            device = gpu_placement.open_device(
                options.device,
                self.arch,
                self.hparams,
                weights,
                self.kv_kind,
                options.cache_dir,
                options.vram,
            )
            if device:
                opened.callback(device.close)
            budget = self._place(device, options, weights)
            self.library = KernelLibrary(options.cache_dir, fill_cache)
            opened.callback(self.library.close)
            self.context = self._make_context(options, weights)
            opened.callback(self.context.close)
            self._start(device, budget, options, progress)
            opened.pop_all()
        self.times.load_s = time.perf_counter() - start

    def close(self) -> None:
        """Once, and when no step runs."""
        self.context.close()
        self.library.close()
        self.checkpoint.close()

    @property
    def heat_owner(self) -> HeatOwner:
        """Whose heat the GPU's cache of experts keeps."""
        assert self.gpu is not None, "only a GPU keeps heat"
        name = self.checkpoint.metadata.get("general.name")
        n_layer, n_expert = self.gpu.slots.cache.n_layer, self.gpu.slots.n_expert
        return HeatOwner(self.arch.name, name if isinstance(name, str) else "", n_layer, n_expert)

    def _read(self, options: Options) -> Weights:
        """What the file says."""
        metadata = self.checkpoint.metadata
        self.arch, self.hparams, weights = read_model(self.checkpoint)
        self.tokenizer: Tokenizer = build_tokenizer(metadata, pre=options.pre_tokenizer)
        self.chat_template: ChatTemplate | None = find_chat_template(metadata, self.tokenizer)
        self.bytes_per_token = weights.bytes_per_token(self.hparams.n_expert_used)
        return weights

    def _place(self, device: Device | None, options: Options, weights: Weights) -> GpuBudget | None:
        """The KV cache's length; what may be taken of the GPU's memory, if there is one."""
        budget = GpuBudget(device, options.vram) if device else None
        self.n_parallel = 1 if device else options.parallel
        if budget:
            self.n_ctx = budget.n_ctx(self.hparams, self.kv_kind, options.n_ctx)
        else:
            self.n_ctx = placement.context_length(
                self.checkpoint, self.hparams, self.kv_kind, options.n_ctx, self.n_parallel
            )
        self.n_threads = options.threads or machine.default_threads(beside_gpu=device is not None)
        return budget

    def _make_context(self, options: Options, weights: Weights) -> Context:
        return Context(
            self.arch,
            self.hparams,
            weights,
            n_ctx=self.n_ctx,
            n_batch=max(min(options.n_batch, self.n_ctx), self.n_parallel),
            kv_kind=self.kv_kind,
            n_seq_max=self.n_parallel,
        )

    def _start(
        self, device: Device | None, budget: GpuBudget | None, options: Options, progress: Progress | None
    ) -> None:
        """Compile what is not cached, make the program and the threads; on a GPU bring experts there."""
        start = time.perf_counter()
        compiling = progress and (lambda name, done, total: progress("compiling", done, total))
        self.gpu: GpuRunner | None = None
        if device and budget:
            self.gpu, self.times.n_compiled = prepare_gpu(
                self.context,
                device,
                self.checkpoint,
                self.library,
                self.n_threads,
                options.policy,
                compiling,
                prompt_bytes=budget.prompt_bytes,
            )
        else:
            self.times.n_compiled = start_on_cpu(self.context, self.library, self.n_threads, compiling)
        self.times.compile_s = time.perf_counter() - start
        self.times.is_kept = self.library.keeps
        if self.gpu and budget:
            start_on_gpu(self.context, self.gpu, budget, self.library)
        if options.mmap:
            placement.warm_page_cache(self.checkpoint, stage_of(progress, "reading"))
        if self.gpu:
            if options.heat is not None:
                self.gpu.slots.warm(load_heat(options.heat, self.heat_owner))
            self.gpu.slots.fill()


def stage_of(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    """What tells `progress` of one stage: called with how much is done and how much there is to do."""
    return progress and (lambda done, total: progress(stage, done, total))
