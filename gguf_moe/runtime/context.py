"""One conversation's state: the tokens in the KV cache, and the runner that extends it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.rope import rope_tables
from gguf_moe.arch.weights import Weights
from gguf_moe.errors import ContextFullError
from gguf_moe.experts.routing import Recorder, Replay
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Graph, Kind
from gguf_moe.runtime.cpu import CpuRunner
from gguf_moe.runtime.crew import KERNELS as CREW_KERNELS
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.mailbox import MOST_PLACES
from gguf_moe.runtime.gpu.runner import GpuRunner
from gguf_moe.runtime.lower import Program, Row, lower
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.runner import Runner, Step
from gguf_moe_kernels.cpu.library import KernelLibrary

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is to do."""


class Context:
    """A KV cache of n_ctx positions and everything that is needed to fill it.

    `tokens` are the ids whose keys and values the cache holds. n_batch is the longest chunk of a prompt that
    one step takes; results do not depend on it. With `replay` the tokens go to the experts of its steps, one
    after the other, and not to those that the routers choose.
    """

    def __init__(
        self,
        arch: Arch,
        hparams: HParams,
        weights: Weights,
        *,
        n_ctx: int,
        n_batch: int,
        kv_kind: Kind,
        replay: Replay | None = None,
    ):
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.tokens: list[int] = []
        self.recorder: Recorder | None = None
        """Learns what the routers choose, from the moment it is set."""
        self._replay = replay
        self._expert_layers = [il for il, block in enumerate(weights.blk) if block.experts]
        self._hparams = hparams
        self._rope_tables = rope_tables(arch, hparams, weights, n_ctx)
        self._memory = Memory()
        self._weights = weights
        self._make_graph = functools.partial(
            build_graph,
            arch,
            hparams,
            weights,
            n_ctx=n_ctx,
            kv_kind=kv_kind,
            injects_routing=replay is not None,
        )
        self.graph: Graph = self._make_graph(n_tokens=n_batch)
        self._runner: Runner | None = None

    def rows(self, n_threads: int) -> list[Row]:
        """The program's rows for so many threads; their kernels must be in the library before `start`."""
        return lower(self.graph, self._memory, n_threads)

    def start(self, rows: list[Row], library: KernelLibrary, n_threads: int) -> None:
        """Put the program together and make the threads."""
        program, crew = Program(rows, library), Crew(n_threads, library)
        n_expert_used = self._hparams.n_expert_used
        self._runner = CpuRunner(self._memory, program, crew, self._expert_layers, n_expert_used)

    def prepare_gpu(self, device: Device, n_threads: int, policy: str) -> GpuRunner:
        """A runner for a GPU, which owns the device from now on.

        Before `start_gpu` its `kernels` must be prepared on the device, those of its `rows` in the library,
        and room for experts allocated. The longest chunk of a prompt becomes what a post has room for.
        """
        self.n_batch = min(self.n_batch, max(1, MOST_PLACES // max(1, self._hparams.n_expert_used)))
        return GpuRunner(
            device,
            self._weights,
            lambda n_tokens: self._make_graph(n_tokens=n_tokens),
            n_batch=self.n_batch,
            n_threads=n_threads,
            policy=policy,
        )

    def start_gpu(self, runner: GpuRunner, library: KernelLibrary) -> None:
        """Let the runner take the steps from now on."""
        runner.start(library)
        self._runner = runner

    def extend(self, tokens: Sequence[int], n_outputs: int, progress: Progress | None = None) -> np.ndarray:
        """Append tokens to the cache, chunk by chunk; the logits of the last n_outputs of them.

        Returns float32 [n_outputs, n_vocab]. If it is interrupted, the cache holds the chunks that were
        finished. Raises ContextFullError.
        """
        if len(self.tokens) + len(tokens) > self.n_ctx:
            raise ContextFullError(
                f"{len(tokens)} more tokens do not fit into the context of {self.n_ctx}, which holds "
                f"{len(self.tokens)}; use a larger context (--ctx) or a shorter prompt."
            )
        n = len(tokens)
        logits = np.empty((n_outputs, self._hparams.n_vocab), np.float32)
        for start in range(0, n, self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            end = start + len(chunk)
            wanted = min(len(chunk), max(0, end - (n - n_outputs)))
            first = end - wanted - (n - n_outputs)
            logits[first : first + wanted] = self._step(chunk, wanted)
            if progress:
                progress(end, n)
        return logits

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens."""
        del self.tokens[n:]

    def close(self) -> None:
        """Join the threads and give the memory back."""
        if self._runner:
            self._runner.close()
        self._runner = None
        self._memory = Memory()

    def _step(self, tokens: Sequence[int], n_outputs: int) -> np.ndarray:
        n_past, inputs = len(self.tokens), {}
        for name, table in self._rope_tables.items():
            inputs[f"{name}_cos"], inputs[f"{name}_sin"] = table.angles(n_past, len(tokens))
        if self._replay:
            inputs["injected_topk"] = self._replay.take(len(tokens))
        assert self._runner is not None, "start() comes first"
        logits = self._runner.run(Step(tokens, n_past, n_outputs, inputs))
        self.tokens.extend(tokens)
        if self.recorder:
            self.recorder.add(self._runner.chosen(len(tokens)))
        return logits


def kernels_of(rows: list[Row]) -> list[str]:
    """All kernels that a program and the crew need, each once."""
    return list(dict.fromkeys([*CREW_KERNELS, *(kernel for row in rows for kernel in row.kernels())]))
