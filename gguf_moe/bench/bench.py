"""A file opened for measuring."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import TracebackType

import numpy as np

from gguf_moe.arch.model import read_model
from gguf_moe.bench.rows import BenchTest, Row
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import OptionError
from gguf_moe.experts.routing import Replay, Routing, load_routing
from gguf_moe.options import Options
from gguf_moe.runtime import machine, placement
from gguf_moe.runtime.bandwidth import KERNEL as BANDWIDTH_KERNEL
from gguf_moe.runtime.bandwidth import BandwidthMeter
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.placement import GpuBudget, check_options, open_device
from gguf_moe.runtime.gpu.usage import Usage
from gguf_moe.runtime.ready import prepare_gpu, start_on_cpu, start_on_gpu
from gguf_moe_kernels.cpu.library import KernelLibrary

Progress = Callable[[str, int, int], None]
"""Called with the stage ("reading", "compiling", "measuring"), how much is done and how much there is."""


class Bench:
    """A file opened for measuring; close it, or use it as a context manager. Not for two threads at once.

    Of the options, n_ctx is the longest context that tests may use (None: that of the file); `threads` and
    `heat` do not count. With `routing`, a file of save_routing, tokens go to the experts of that trace.
    Raises what loading a model raises.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: Options,
        progress: Progress | None = None,
        routing: str | os.PathLike[str] | None = None,
    ):
        check_options(options.vram, options.policy)
        self._options = options
        self._progress = progress or (lambda stage, done, total: None)
        self._meter: BandwidthMeter | None = None
        self._checkpoint = open_checkpoint(path, mmap=options.mmap, progress=self._stage("reading"))
        self.path = self._checkpoint.path
        with ExitStack() as opened:
            opened.callback(self._checkpoint.close)
            self.arch, self.hparams, self._weights = read_model(self._checkpoint)
            self._kv_kind = placement.kv_kind(options.kv_type, self.hparams, self._weights)
            self._routing = self._load_routing(routing) if routing is not None else None
            self._device = self._open_device()
            self._has_gpu = self._device is not None
            self._library = KernelLibrary(options.cache_dir)
            opened.pop_all()
        if options.mmap:
            placement.warm_page_cache(self._checkpoint, self._stage("reading"))

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file and the memory back. Twice is fine."""
        self._meter = None
        if self._device:
            self._device.close()
        self._device = None
        self._library.close()
        self._checkpoint.close()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors (llama-bench: model_size)."""
        return sum(tensor.nbytes for tensor in self._checkpoint.tensors.values())

    @property
    def n_params(self) -> int:
        """Elements of all tensors."""
        tensors = self._checkpoint.tensors.values()
        return sum(tensor.shape[0] * tensor.n_rows for tensor in tensors)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one generated token reads."""
        return self._weights.bytes_per_token(self.hparams.n_expert_used)

    @property
    def default_threads(self) -> int:
        """Threads for a test when nobody says how many."""
        return machine.default_threads(beside_gpu=self._has_gpu)

    def check(self, test: BenchTest) -> None:
        """Raise OptionError if the test is longer than the context."""
        limit = self._options.n_ctx or self.hparams.n_ctx_train
        if test.n_depth + test.n_tokens > limit:
            raise OptionError(
                f"{test.name} needs a context of {test.n_depth + test.n_tokens} tokens, but that of "
                f"{self.path} is {limit}; use a shorter test, or a longer context (--ctx)."
            )

    def context(self, n_ctx: int, n_threads: int) -> Context:
        """A context of n_ctx positions with threads of its own, ready for work. Close it before the bench.

        On a GPU one context exists at a time, and begins with some expert in every slot.
        """
        if self._has_gpu:
            self._device = self._device or self._open_device()
        budget = GpuBudget(self._device, self._options.vram) if self._device else None
        if not budget:
            n_ctx = placement.context_length(self._checkpoint, self.hparams, self._kv_kind, n_ctx)
        context = Context(
            self.arch,
            self.hparams,
            self._weights,
            n_ctx=n_ctx,
            n_batch=min(self._options.n_batch, n_ctx),
            kv_kind=self._kv_kind,
            replay=Replay(self._routing) if self._routing else None,
        )
        if budget:
            self._start_gpu(context, budget, n_threads)
        else:
            start_on_cpu(context, self._library, n_threads, self._compiling, [BANDWIDTH_KERNEL])
        return context

    def bandwidth(self, n_threads: int) -> float:
        """Bytes per second that so many threads can read from this machine's memory."""
        self._meter = self._meter or BandwidthMeter(self._library)
        return self._meter.measure(n_threads)

    def run(self, test: BenchTest, repetitions: int) -> Row:
        """Measure: fill the context up to the depth, warm up, then repeat. Raises OptionError as `check`.

        The warm-up is one token for tg, but on a GPU a whole repetition: its cache of experts has to learn.
        """
        self.check(test)
        with closing(self.context(test.n_depth + test.n_tokens, test.n_threads)) as context:
            fill(context, test.n_depth, self.hparams.n_vocab)
            tokens = random_tokens(test.n_tokens, self.hparams.n_vocab)
            before = self.bandwidth(test.n_threads)  # before the warm-up, as it empties the CPU's caches
            timed(context, test, tokens if test.n_prompt or context.gpu else tokens[:1])
            speeds: list[float] = []
            earlier = _usage(context)
            for done in range(repetitions):
                self._progress("measuring", done, repetitions)
                fill(context, test.n_depth, self.hparams.n_vocab)
                speeds.append(test.n_tokens / timed(context, test, tokens))
            usage = _usage(context)
            difference = usage - earlier if usage and earlier else None
            bandwidths = before, self.bandwidth(test.n_threads)
            return Row(test, bandwidths, self.bytes_per_token, speeds, difference)

    def _start_gpu(self, context: Context, budget: GpuBudget, n_threads: int) -> None:
        device, self._device = self._device, None  # the context closes it
        assert device is not None
        try:
            runner, _ = prepare_gpu(
                context,
                device,
                self._checkpoint,
                self._library,
                n_threads,
                self._options.policy,
                self._compiling,
                [BANDWIDTH_KERNEL],
                budget.prompt_bytes,
            )
            start_on_gpu(context, runner, budget, self._library)
            runner.slots.fill()
        except BaseException:
            context.close()
            device.close()
            raise

    def _open_device(self) -> Device | None:
        device, cache, vram = self._options.device, self._options.cache_dir, self._options.vram
        return open_device(device, self.arch, self.hparams, self._weights, self._kv_kind, cache, vram)

    def _load_routing(self, path: str | os.PathLike[str]) -> Routing:
        routing, hp = load_routing(path), self.hparams
        routing.check(str(path), hp.n_layer, hp.n_expert, hp.n_expert_used)
        return routing

    def _compiling(self, name: str, done: int, total: int) -> None:
        self._progress("compiling", done, total)

    def _stage(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(stage, done, total)


def random_tokens(n: int, n_vocab: int) -> list[int]:
    """n random token ids, always the same: they go to the same experts in every repetition."""
    return [int(token) for token in np.random.default_rng(0).integers(0, n_vocab, n)]


def fill(context: Context, n_depth: int, n_vocab: int) -> None:
    """Let the context, which holds them and some more or nothing, hold n_depth random tokens."""
    if rest := random_tokens(n_depth, n_vocab)[context.truncate(n_depth) :]:
        context.extend(rest, 1)


def timed(context: Context, test: BenchTest, tokens: list[int]) -> float:
    """Seconds of one repetition."""
    steps = [tokens] if test.n_prompt else [[token] for token in tokens]
    start = time.perf_counter()
    for step in steps:
        context.extend(step, 1)
    return time.perf_counter() - start


def _usage(context: Context) -> Usage | None:
    return context.gpu.usage() if context.gpu else None
