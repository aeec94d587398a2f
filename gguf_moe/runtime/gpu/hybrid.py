"""One graph of which GPU and crew run a step together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gguf_moe.errors import DeviceError
from gguf_moe.graph.task import Graph, Rows
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.branches import Branches
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.fuse import fuse
from gguf_moe.runtime.gpu.kv import move_addresses
from gguf_moe.runtime.gpu.lower import lower_to_gpu
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.meeting import ready_words, waited_address
from gguf_moe.runtime.gpu.memory import DeviceWeights
from gguf_moe.runtime.gpu.missing import lower_to_crew
from gguf_moe.runtime.gpu.ops import Launch
from gguf_moe.runtime.gpu.sections import expert_sections
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.gpu.step import Embed, StepBuffers
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.program import Program, Row
from gguf_moe.runtime.runner import Step

PROGRESS_LIMIT_S = 20.0
"""How long neither side may get on."""


class StepProgram:
    """One graph, ready to run on up to n_tokens tokens: launches, the crew's program, inputs and logits."""

    def __init__(
        self,
        device: Device,
        graph: Graph,
        n_tokens: int,
        weights: DeviceWeights,
        caches: dict[str, int],
        n_threads: int,
        linked: Sequence[int] = (),
    ):
        """linked: for each layer with experts, how many rows of missing down matrices come over the link."""
        self.n_tokens = n_tokens
        self._device = device
        self._buffers = StepBuffers(device, graph, n_tokens, weights, caches)
        self.memory = self._buffers.memory
        self.sections = expert_sections(graph)
        x = {buffer.name: buffer for section in self.sections for buffer in section.x}
        n_places = max((s.sum.inputs["x"].rows for s in self.sections), default=1)
        answers = {s.sum.inputs["x"].name: s.sum.inputs["x"] for s in self.sections}
        links = [section for section, n_rows in zip(self.sections, linked, strict=False) if n_rows]
        hidden = {s.hidden.name: s.hidden for s in links}
        exchanged = [*x.values(), *answers.values(), *hidden.values()]
        self.mailbox = Mailbox(device, len(self.sections), n_places, exchanged)
        self.host_memory = Memory()
        lowered = lower_to_gpu(graph, self.memory, self.mailbox, linked)
        self.launches: list[Launch] = fuse(lowered, n_tokens)
        self.rows: list[Row] = lower_to_crew(graph, self.host_memory, self.mailbox, n_threads, linked)
        self._zeros = device.pinned(ready_words(self.memory, len(self.sections))[1])
        self._waited = device.pinned(8).view(np.int64)
        self.program: Program | None = None
        """The crew's part, once it is put together."""
        self.n_expert_used = self.sections[0].rows.inputs["ids"].cols if self.sections else 1
        self._graph: Any = None

    def run(self, number: int, step: Step, embed: Embed, stream: Any, slots: ExpertSlots, crew: Crew) -> None:
        """Run a step, of this number since loading, to its end.

        Raises DeviceError if a side fails or does not get on. Whatever is raised, both have left the step.
        """
        assert self.program is not None, "the crew's part is put together"
        self._write_inputs(number, step, embed)
        self.mailbox.set_abort(False)
        watch = _Watch(self._device, stream, self, number)
        try:
            self.start(stream, slots)
            slots.work_beside()
            crew.run(self.program, watch)
            wait(self._device, stream)
        except BaseException:
            self.mailbox.set_abort(True)
            self._leave(stream)
            raise
        if self.mailbox.aborted:
            self._leave(stream)
            raise DeviceError("the GPU waited too long for the CPU and gave a step up; try again.")

    def queue(self, stream: Any, branches: Branches, slots: ExpertSlots) -> None:
        """Put all of a step on the stream: inputs, kernels, logits."""
        self._buffers.copy_in(stream)
        slots.tables.copy(stream)
        branches.queue(self.launches, self.launch)
        self._buffers.copy_out(stream)

    def launch(self, stream: Any, launch: Launch) -> None:
        """Queue one of the launches."""
        rows = self.n_tokens * (self.n_expert_used if launch.rows is Rows.PLACES else 1)
        self._device.launch(stream, launch.kernel, launch.arguments, rows)

    def start(self, stream: Any, slots: ExpertSlots) -> None:
        """Let the GPU begin: by a captured graph, made at the first call."""
        if self._graph is None:
            branches = Branches(self._device, stream)
            self._graph = self._device.capture(stream, lambda: self.queue(stream, branches, slots))
        self._device.replay(stream, self._graph)

    def move(self, moved: Mapping[int, int]) -> None:
        """Buffers that it shares with others have other addresses from now on."""
        move_addresses((launch.arguments for launch in self.launches), moved)
        self._graph = None

    def logits(self, n_outputs: int) -> np.ndarray:
        """Of the step that was run last: float32 [n_outputs, n_vocab]."""
        return self._buffers.logits(n_outputs)

    def chosen(self, n: int) -> np.ndarray:
        """The ids that the routers of layers with experts chose for n tokens: int32 [layers, n * used]."""
        return self.mailbox.chosen(n * self.n_expert_used)

    def waited_ns(self, stream: Any) -> int:
        """For how long the joins have waited for the CPU since loading. Between steps only."""
        address = self._waited.__array_interface__["data"][0]
        self._device.copy(stream, address, waited_address(self.memory), self._waited.nbytes)
        wait(self._device, stream)
        return int(self._waited[0])

    def _write_inputs(self, number: int, step: Step, embed: Embed) -> None:
        """Put what the step needs where the device and the crew will find it."""
        n, n_places = len(step.tokens), len(step.tokens) * self.n_expert_used
        self._buffers.write(number, step, n_places, embed)
        self.host_memory.set_step(step.n_past, n, len(step.outputs), n_places, number)

    def _leave(self, stream: Any) -> None:
        """After a step that was given up: wait until the GPU has left it, then let the joins wait again."""
        wait(self._device, stream)
        address, nbytes = ready_words(self.memory, len(self.sections))
        self._device.copy(stream, address, self._zeros.__array_interface__["data"][0], nbytes)
        wait(self._device, stream)


class _Watch:
    """Looks, while the crew works, whether the GPU and the crew get on."""

    def __init__(self, device: Device, stream: Any, program: StepProgram, number: int):
        self._device = device
        self._stream = stream
        self._program = program
        self._number = number
        self._seen = -1
        self._looks_without_progress = 0

    def __call__(self, seconds: float) -> None:
        """Called every `seconds`; raises DeviceError if the GPU failed or stands still."""
        is_idle = self._device.is_idle(self._stream)
        program = self._program.program
        assert program is not None
        progress = int(program.counters.sum()) + sum(
            self._program.mailbox.posted(layer) == self._number
            for layer in range(len(self._program.sections))
        )
        if progress != self._seen:
            self._seen, self._looks_without_progress = progress, 0
            self._program.mailbox.beat()
            return
        self._looks_without_progress += 1
        if is_idle and self._looks_without_progress > 2:
            raise DeviceError(
                "the GPU ended a step before the CPU had all of its work; load the model again."
            )
        if self._looks_without_progress * seconds > PROGRESS_LIMIT_S:
            raise DeviceError(f"the GPU has not got on for {PROGRESS_LIMIT_S:.0f} s; load the model again.")
