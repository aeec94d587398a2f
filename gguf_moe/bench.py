"""How fast a file runs here, measured in llama-bench's way, beside how fast this machine reads memory.

  pp N    a prompt of N tokens
  tg N    N tokens generated one after the other

Both may begin after `n_depth` tokens of context. No text takes part: tokens are random, and the tokenizer is
not read.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import OptionError
from gguf_moe.options import Options
from gguf_moe.runtime import placement
from gguf_moe.runtime.bandwidth import KERNEL as BANDWIDTH_KERNEL
from gguf_moe.runtime.bandwidth import BandwidthMeter
from gguf_moe.runtime.context import Context, kernels_of
from gguf_moe_kernels.cpu.library import KernelLibrary

Progress = Callable[[str, int, int], None]
"""Called with the stage ("reading", "compiling", "measuring"), how much is done and how much there is."""


@dataclass(frozen=True, slots=True)
class BenchTest:
    """What is measured: n_prompt tokens at once, or n_gen tokens one by one; the other is 0."""

    n_threads: int
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench writes it."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{what} @ d{self.n_depth}" if self.n_depth else what

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt or self.n_gen


@dataclass(slots=True)
class Row:
    """A test's result."""

    test: BenchTest
    bandwidths: tuple[float, float]
    """Bytes per second that as many threads can read, measured before and after the test."""
    bytes_per_token: int
    """Bytes of weights that one generated token reads."""
    speeds: list[float] = field(default_factory=list)
    """Tokens per second of each repetition."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.speeds)

    @property
    def deviation(self) -> float:
        """The standard deviation of the repetitions; 0 for one."""
        return statistics.stdev(self.speeds) if len(self.speeds) > 1 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes of weights read per second, if the test generated its tokens."""
        return self.mean * self.bytes_per_token

    @property
    def bandwidth_share(self) -> float:
        """The share of the read bandwidth that this is."""
        return self.bytes_per_second / statistics.fmean(self.bandwidths)


class Bench:
    """A file opened for measuring; close it, or use it as a context manager. Not for two threads at once.

    Of the options, n_ctx is the longest context that tests may use (None: that of the file); `threads` does
    not count. Raises what loading a model raises.
    """

    def __init__(self, path: str | os.PathLike[str], options: Options, progress: Progress | None = None):
        self._options = options
        self._progress = progress or (lambda stage, done, total: None)
        self._checkpoint = open_checkpoint(path, mmap=options.mmap, progress=self._stage("reading"))
        self.path = self._checkpoint.path
        self.arch = find_arch(self._checkpoint.metadata)
        self.hparams = read_hparams(self._checkpoint.metadata, self.arch)
        self._weights = load_weights(self._checkpoint, self.arch, self.hparams)
        self._library = KernelLibrary(options.cache_dir)
        self._meter: BandwidthMeter | None = None
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

    def check(self, test: BenchTest) -> None:
        """Raise OptionError if the test is longer than the context."""
        limit = self._options.n_ctx or self.hparams.n_ctx_train
        if test.n_depth + test.n_tokens > limit:
            raise OptionError(
                f"{test.name} needs a context of {test.n_depth + test.n_tokens} tokens, but that of "
                f"{self.path} is {limit}; use a shorter test, or a longer context (--ctx)."
            )

    def context(self, n_ctx: int, n_threads: int) -> Context:
        """A context of n_ctx positions with threads of its own, ready for work. Close it before the bench."""
        kind = placement.kv_kind(self._options.kv_type, self._weights)
        context = Context(
            self.arch,
            self.hparams,
            self._weights,
            n_ctx=placement.context_length(self._checkpoint, self.hparams, kind, n_ctx),
            n_batch=min(self._options.n_batch, n_ctx),
            kv_kind=kind,
        )
        rows = context.rows(n_threads)
        kernels = [*kernels_of(rows), BANDWIDTH_KERNEL]
        self._library.prepare(kernels, lambda name, done, total: self._progress("compiling", done, total))
        context.start(rows, self._library, n_threads)
        return context

    def bandwidth(self, n_threads: int) -> float:
        """Bytes per second that so many threads can read from this machine's memory."""
        self._meter = self._meter or BandwidthMeter(self._library)
        return self._meter.measure(n_threads)

    def run(self, test: BenchTest, repetitions: int) -> Row:
        """Measure: fill the context up to the depth, warm up, then repeat. Raises OptionError as `check`."""
        self.check(test)
        with closing(self.context(test.n_depth + test.n_tokens, test.n_threads)) as context:
            fill(context, test.n_depth, self.hparams.n_vocab)
            tokens = random_tokens(test.n_tokens, self.hparams.n_vocab)
            timed(context, test, tokens if test.n_prompt else tokens[:1])
            before, speeds = self.bandwidth(test.n_threads), []
            for done in range(repetitions):
                self._progress("measuring", done, repetitions)
                speeds.append(test.n_tokens / timed(context, test, tokens))
            return Row(test, (before, self.bandwidth(test.n_threads)), self.bytes_per_token, speeds)

    def _stage(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(stage, done, total)


def random_tokens(n: int, n_vocab: int) -> list[int]:
    """n random token ids, always the same: they go to the same experts in every repetition."""
    return [int(token) for token in np.random.default_rng(0).integers(0, n_vocab, n)]


def fill(context: Context, n_depth: int, n_vocab: int) -> None:
    """Let the context hold n_depth random tokens."""
    context.truncate(0)
    if n_depth:
        context.extend(random_tokens(n_depth, n_vocab), 1)


def timed(context: Context, test: BenchTest, tokens: list[int]) -> float:
    """Seconds of one repetition, after the first n_depth tokens of the context."""
    context.truncate(test.n_depth)
    steps = [tokens] if test.n_prompt else [[token] for token in tokens]
    start = time.perf_counter()
    for step in steps:
        context.extend(step, 1)
    return time.perf_counter() - start
