"""A context's steps on the CPU alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.program import Program
from gguf_moe.runtime.runner import Step


class CpuRunner:
    """The crew walks the program of a graph whose buffers are in `memory`.

    `expert_layers` are the layers that have experts, of which n_expert_used are used.
    """

    def __init__(
        self, memory: Memory, program: Program, crew: Crew, expert_layers: Sequence[int], n_expert_used: int
    ):
        self._memory = memory
        self._program: Program | None = program
        self._crew = crew
        self._expert_layers = expert_layers
        self._n_expert_used = n_expert_used

    def make_room(self, n_positions: int) -> None:
        """All of it is there from the beginning."""

    def long_step(self, n_left: int, n_outputs: int) -> int:
        return 0

    def run(self, step: Step) -> np.ndarray:
        n, n_outputs, memory = len(step.tokens), len(step.outputs), self._memory
        memory.set_step(step.n_past, n, n_outputs, n * self._n_expert_used)
        memory["inp_tokens"][:n, 0] = step.tokens
        memory["out_ids"][:n_outputs, 0] = step.outputs
        for name, rows in step.inputs.items():
            memory[name][:n] = rows
        assert self._program is not None, "a closed runner is not used"
        self._crew.run(self._program)
        return memory["result_output"][:n_outputs]

    def chosen(self, n_tokens: int) -> list[np.ndarray]:
        return [self._memory[f"ffn_moe_topk-{il}"][:n_tokens] for il in self._expert_layers]

    def read(self, name: str, start: int, nbytes: int) -> np.ndarray:
        return self._bytes(name)[start : start + nbytes].copy()

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        self._bytes(name)[start : start + data.nbytes] = data

    def _bytes(self, name: str) -> np.ndarray:
        return self._memory[name].reshape(-1).view(np.uint8)

    def close(self) -> None:
        self._crew.close()
        self._program = None
        self._memory = Memory()
