"""Which chunks of a prompt are streamed (prompt.py), and the memory for that.

A chunk borrows memory of experts, which then have to be streamed too. So shorter chunks have a program of
their own, which borrows less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from gguf_moe.arch.weights import Experts
from gguf_moe.errors import OutOfMemoryError
from gguf_moe.experts.budget import aligned
from gguf_moe.graph.task import Graph
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.memory import ALIGNMENT, DeviceWeights, Tenant
from gguf_moe.runtime.gpu.prompt import PromptProgram, Room, prompt_kernels
from gguf_moe.runtime.gpu.slot_memory import ROLES
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.memory import row_size

MakeGraph = Callable[[int, int], Graph]
"""make_graph(n_tokens, n_outputs): of steps that are not larger."""
CHUNKS = (2048, 1536, 1024, 768, 512, 384, 256, 128)
"""The most tokens of a chunk: the first of these that there is room for."""
SHORTER = 512
"""The most tokens of a chunk that borrows less."""
MOST_OUTPUTS = 16
"""Logits that a chunk can give."""
PIECE_SIZE = 32 << 20
"""Bytes of a piece of the ring, at least."""
MOST_PIECES = 8
"""So that copies go on while the GPU does something else than a layer's experts."""
SOME_NUMBERS = 1 << 16
"""Bytes for what a step has besides buffers."""
AGEING = 0.97
"""How the time that streaming takes is thought to shrink with each chunk that was too short for it."""
FIRST_THRESHOLD = 128
"""Tokens from which experts are streamed until both ways were measured."""


class LongPrompts:
    """The programs for chunks of more tokens than `least`, whenever there is room for them.

    make_graph builds its graph; layers are those that have experts; nbytes of the slots' memory may be lent.
    """

    def __init__(self, make_graph: MakeGraph, layers: Sequence[Experts], n_ctx: int, least: int, nbytes: int):
        self._make_graph = make_graph
        self._layers = layers
        self._n_ctx = n_ctx
        self._least = least
        self._nbytes = nbytes
        self.threshold = Threshold()
        self.programs: list[PromptProgram] = []
        """The first of them for shorter chunks."""
        self._memory: Tenant | None = None
        self._streamed_bytes = 0

    @property
    def streamed_bytes(self) -> int:
        """Bytes of experts that passed through the GPU so far."""
        return self._streamed_bytes + sum(program.streamed_bytes for program in self.programs)

    @property
    def lent_bytes(self) -> int:
        """Bytes of the slots' memory that the longest chunk borrows."""
        return self.programs[-1].lent_bytes if self.programs else 0

    @property
    def kernels(self) -> list[str]:
        """What the program needs."""
        return prompt_kernels(self._make_graph(2, 1)) if self._nbytes else []

    def prepare(
        self,
        device: Device,
        weights: DeviceWeights,
        slots: ExpertSlots,
        caches: dict[str, int],
        spare: int,
    ) -> None:
        """Make the programs when the slots have their memory, if that or what is to spare is enough."""
        is_lent = spare < self._nbytes
        nbytes = min(self._nbytes, slots.memory.nbytes if is_lent else spare)
        self._memory = tenant = Tenant(device)
        for most in (min(SHORTER, self._n_ctx), self._n_ctx)[not is_lent :]:
            room = find_room(self._make_graph, self._layers, nbytes, most)
            if not room or (self.programs and room.n_tokens == self.programs[0].n_tokens):
                continue
            graph = self._make_graph(room.n_tokens, MOST_OUTPUTS)
            try:
                program = PromptProgram(cast("Device", tenant), graph, room, weights, slots, caches, is_lent)
            except OutOfMemoryError:
                self.leave()  # prompts go the other way
                return
            self.programs.append(program)

    def leave(self) -> None:
        """Give the programs up, and their memory, until `prepare` is called again. Between steps only."""
        self._streamed_bytes = self.streamed_bytes
        self.programs = []
        if self._memory:
            self._memory.leave()
        self._memory = None

    def n_tokens(self, n_left: int, n_outputs: int) -> int:
        """See Runner.long_step."""
        if not self.programs:
            return 0
        n = min(n_left, self.programs[-1].n_tokens)
        if n <= self._least or n_outputs - (n_left - n) > MOST_OUTPUTS:
            return 0
        if n < self.threshold.n_tokens:
            self.threshold.refused()
            return 0
        return n

    def program_for(self, n_tokens: int) -> PromptProgram | None:
        """The program for a step that `n_tokens` has asked for."""
        if n_tokens <= self._least:
            return None
        return next((program for program in self.programs if n_tokens <= program.n_tokens), None)


def find_room(make_graph: MakeGraph, layers: Sequence[Experts], nbytes: int, most: int) -> Room | None:
    """How to use nbytes: a quarter for the ring, the rest for a chunk's activations. None: too few.

    most: tokens that a chunk may have.
    """
    largest = max((max(getattr(experts, role).nbytes) for experts in layers for role in ROLES), default=0)
    piece_size = aligned(max(PIECE_SIZE, largest))
    n_pieces = min(MOST_PIECES, max(2, nbytes // 4 // piece_size))
    for n_tokens in CHUNKS if largest else ():
        if n_tokens <= most:
            buffers = make_graph(n_tokens, MOST_OUTPUTS).buffers().values()
            sizes = [b.rows * row_size(b) + ALIGNMENT for b in buffers if not b.name.startswith("cache_")]
            needed = aligned(sum(sizes) + n_pieces * piece_size + SOME_NUMBERS)
            if needed <= nbytes:
                return Room(n_tokens, piece_size, n_pieces, needed)
    return None


class Threshold:
    """How many tokens are worth streaming: learns how long both ways take."""

    def __init__(self) -> None:
        self._streaming_s = 0.0
        self._token_s = 0.0

    @property
    def n_tokens(self) -> int:
        """From so many tokens on streaming is faster."""
        if not self._streaming_s or not self._token_s:
            return FIRST_THRESHOLD
        return math.ceil(self._streaming_s / self._token_s)

    def streamed(self, seconds: float) -> None:
        """A chunk took so long; mostly the copies, however many tokens it had."""
        self._streaming_s = seconds

    def refused(self) -> None:
        """A chunk was too short. What is known gets old: perhaps the file had to be read from a disk."""
        self._streaming_s *= AGEING

    def computed(self, n_tokens: int, seconds: float) -> None:
        """A chunk of n_tokens took so long with the CPU's help."""
        self._token_s = seconds / n_tokens
