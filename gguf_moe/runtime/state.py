"""What a context remembers from step to step, as bytes: keys and values, and states of recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gguf_moe.graph.task import Graph
from gguf_moe.runtime.memory import row_size
from gguf_moe.runtime.runner import Runner
from gguf_moe.runtime.sequence import CachedSequence


@dataclass(frozen=True, slots=True)
class StatePart:
    """Where a part of it is: bytes of a buffer."""

    name: str
    start: int
    nbytes: int


class State:
    """The buffers of a graph that last, wherever the runner has them. Each sequence has a part of them."""

    def __init__(self, graph: Graph, sequences: Sequence[CachedSequence]):
        self.runner: Runner | None = None
        """Set when the context has one."""
        self._sequences = sequences
        buffers = graph.buffers().values()
        self._caches = [buffer for buffer in buffers if buffer.name.startswith("cache_")]
        self._recurrent = [buffer for buffer in buffers if "_states_l" in buffer.name]

    def parts(self, n: int) -> list[StatePart]:
        """Where the first sequence has what it remembers of n tokens."""
        self.bring_back(self._sequences[0])
        return self._parts(self._sequences[0], n)

    def read(self, part: StatePart) -> np.ndarray:
        """The bytes of a part, u8 [nbytes]."""
        assert self.runner is not None, "start() comes first"
        return self.runner.read(part.name, part.start, part.nbytes)

    def write(self, part: StatePart, data: np.ndarray) -> None:
        """Give a part other bytes; when all are written, `hold` says which tokens they are of."""
        assert self.runner is not None, "start() comes first"
        self.runner.write(part.name, part.start, data)

    def hold(self, tokens: Sequence[int]) -> None:
        """The first sequence is now that of these tokens."""
        self._sequences[0].forget_kept()
        self._sequences[0].tokens = list(tokens)

    def copy_prefix(self, source: CachedSequence, target: CachedSequence, n: int) -> int:
        """Let `target` hold the first n tokens of `source`, and no others; nothing is computed.

        Returns how many it holds: fewer if the states of recurrent layers are those after other tokens.
        """
        self.bring_back(source)
        target.forget_kept()
        if not source.goes_back and n != len(source.tokens):
            n = source.n_kept if source.n_kept <= n else 0
            target.kept_states, target.n_kept, target.must_go_back = source.kept_states, n, n > 0
        for old, new in zip(self._parts(source, n), self._parts(target, n), strict=True):
            self.write(new, self.read(old))
        target.tokens = source.tokens[:n]
        return n

    def keep(self, sequence: CachedSequence) -> None:
        """Copy the states of a sequence's recurrent layers, so that it can go back to them."""
        sequence.kept_states = [self.read(part) for part in self._recurrent_parts(sequence)]
        sequence.n_kept = len(sequence.tokens)

    def bring_back(self, sequence: CachedSequence) -> None:
        """Let a sequence that must go back have its kept states again."""
        if sequence.must_go_back:
            for part, data in zip(self._recurrent_parts(sequence), sequence.kept_states, strict=True):
                self.write(part, data)
            sequence.must_go_back = False

    def layout(self) -> str:
        """Equal for graphs whose buffers have rows of the same form."""
        buffers = self._caches + self._recurrent
        return "\n".join(f"{buffer.name} {buffer.kind} {buffer.cols}" for buffer in buffers)

    def _parts(self, sequence: CachedSequence, n: int) -> list[StatePart]:
        """Where a sequence has what it remembers of n tokens."""
        sizes = {buffer.name: row_size(buffer) for buffer in self._caches}
        cells = [StatePart(name, sequence.first_cell * size, n * size) for name, size in sizes.items()]
        return cells + self._recurrent_parts(sequence)

    def _recurrent_parts(self, sequence: CachedSequence) -> list[StatePart]:
        """Where a sequence has the states of its recurrent layers."""
        number, n_sequences = self._sequences.index(sequence), len(self._sequences)
        sizes = {buffer.name: buffer.rows * row_size(buffer) // n_sequences for buffer in self._recurrent}
        return [StatePart(name, number * size, size) for name, size in sizes.items()]
