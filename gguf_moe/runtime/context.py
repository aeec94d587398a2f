"""One conversation's state: the KV cache and the program that extends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.rope import rope_tables
from gguf_moe.arch.weights import Weights
from gguf_moe.errors import ContextFullError
from gguf_moe.graph.decoder import build_graph
from gguf_moe.graph.task import Graph, Kind
from gguf_moe.runtime.crew import KERNELS as CREW_KERNELS
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.lower import Program, Row, lower
from gguf_moe.runtime.memory import Memory
from gguf_moe_kernels.cpu.library import KernelLibrary

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is to do."""


class Context:
    """A KV cache of n_ctx positions and everything that is needed to fill it.

    `tokens` are the ids whose keys and values the cache holds. n_batch is the longest chunk of a prompt that
    one step takes; results do not depend on it.
    """

    def __init__(
        self, arch: Arch, hparams: HParams, weights: Weights, *, n_ctx: int, n_batch: int, kv_kind: Kind
    ):
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.tokens: list[int] = []
        self._hparams = hparams
        self._rope_tables = rope_tables(arch, hparams, weights, n_ctx)
        self._memory = Memory()
        self.graph: Graph = build_graph(
            arch, hparams, weights, n_tokens=n_batch, n_ctx=n_ctx, kv_kind=kv_kind
        )
        self._crew: Crew | None = None
        self._program: Program | None = None

    def rows(self, n_threads: int) -> list[Row]:
        """The program's rows for so many threads; their kernels must be in the library before `start`."""
        return lower(self.graph, self._memory, n_threads)

    def start(self, rows: list[Row], library: KernelLibrary, n_threads: int) -> None:
        """Put the program together and make the threads."""
        self._program = Program(rows, library)
        self._crew = Crew(n_threads, library)

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
        if self._crew:
            self._crew.close()
        self._crew = self._program = None
        self._memory = Memory()

    def _step(self, tokens: Sequence[int], n_outputs: int) -> np.ndarray:
        n, n_past, memory = len(tokens), len(self.tokens), self._memory
        memory.set_step(n_past, n, n_outputs, n * self._hparams.n_expert_used)
        memory["inp_tokens"][:n, 0] = tokens
        memory["out_ids"][:n_outputs, 0] = np.arange(n - n_outputs, n)
        for name, table in self._rope_tables.items():
            memory[f"{name}_cos"][:n], memory[f"{name}_sin"][:n] = table.angles(n_past, n)
        assert self._crew is not None, "start() comes first"
        assert self._program is not None
        self._crew.run(self._program)
        self.tokens.extend(tokens)
        return memory["result_output"][:n_outputs]


def kernels_of(rows: list[Row]) -> list[str]:
    """All kernels that a program and the crew need, each once."""
    return list(dict.fromkeys([*CREW_KERNELS, *(kernel for row in rows for kernel in row.kernels())]))
