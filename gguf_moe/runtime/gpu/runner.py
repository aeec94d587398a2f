"""A context's steps on a GPU, with the crew for the experts that the GPU does not hold."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import DeviceError
from gguf_moe.graph.task import Graph, Rows
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.branches import Branches
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.fuse import fuse
from gguf_moe.runtime.gpu.link import Rates, Trial, rows_over_link
from gguf_moe.runtime.gpu.long_prompts import LongPrompts, MakeGraph
from gguf_moe.runtime.gpu.lower import Launch, lower_to_crew, lower_to_gpu
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.meeting import ready_words, waited_address
from gguf_moe.runtime.gpu.memory import DeviceWeights
from gguf_moe.runtime.gpu.prompt import PromptProgram
from gguf_moe.runtime.gpu.sections import expert_sections
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.gpu.step import Embed, StepBuffers
from gguf_moe.runtime.gpu.usage import Usage
from gguf_moe.runtime.memory import Memory, row_size
from gguf_moe.runtime.program import Program, Row
from gguf_moe.runtime.runner import Step
from gguf_moe_kernels.cpu.library import KernelLibrary

STEP_LIMIT_S = 60.0
"""How long the GPU may take after the crew has finished its part of a step."""
STAGING = 1 << 24
"""Bytes that go to the KV cache, or come from it, at a time."""
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
        self.program: Program | None = None
        self.n_expert_used = self.sections[0].rows.inputs["ids"].cols if self.sections else 1
        self._graph: Any = None

    def write_inputs(self, number: int, step: Step, embed: Embed) -> None:
        """Put what the step needs where the device and the crew will find it."""
        n, n_places = len(step.tokens), len(step.tokens) * self.n_expert_used
        self._buffers.write(number, step, n_places, embed)
        self.host_memory.set_step(step.n_past, n, len(step.outputs), n_places, number)

    def queue(self, stream: Any, branches: Branches, slots: ExpertSlots) -> None:
        """Put all of a step on the stream: inputs, kernels, logits."""
        self._buffers.copy_in(stream)
        slots.copy_tables(stream)
        branches.queue(self.launches, self.launch)
        self._buffers.copy_out(stream)

    def launch(self, stream: Any, launch: Launch, early: bool) -> None:
        """Queue one of the launches; see Device.launch."""
        rows = self.n_tokens * (self.n_expert_used if launch.rows is Rows.PLACES else 1)
        self._device.launch(stream, launch.kernel, launch.arguments, rows, early)

    def start(self, stream: Any, slots: ExpertSlots) -> None:
        """Let the GPU begin: by a captured graph, made at the first call."""
        if self._graph is None:
            branches = Branches(self._device, stream)
            self._graph = self._device.capture(stream, lambda: self.queue(stream, branches, slots))
        self._device.replay(stream, self._graph)

    def forget_abort(self, stream: Any) -> None:
        """Queue what makes the joins wait again after a step that was given up."""
        address, nbytes = ready_words(self.memory, len(self.sections))
        self._device.copy(stream, address, self._zeros.__array_interface__["data"][0], nbytes)

    def logits(self, n_outputs: int) -> np.ndarray:
        """Of the step that was run last: float32 [n_outputs, n_vocab]."""
        return self._buffers.logits(n_outputs)

    def chosen(self, n: int) -> list[list[int]]:
        """For each layer with experts the ids that the router chose for n tokens."""
        return [self.mailbox.chosen(layer, n * self.n_expert_used) for layer in range(len(self.sections))]


class GpuRunner:
    """Runs steps of one token or of up to n_batch tokens; the KV cache and all dense weights are on the GPU.

    Longer steps stream experts (long_prompts.py); for them prompt_bytes of the experts' memory may be lent.
    With rates, steps of one token may bring matrices of missing experts over the link (link.py); the device
    must be able to read the file where it lies then. Before `start` comes `allocate_slots`.
    """

    def __init__(
        self,
        device: Device,
        weights: Weights,
        make_graph: MakeGraph,
        *,
        n_batch: int,
        n_ctx: int,
        n_threads: int,
        policy: str,
        prompt_bytes: int,
        rates: Rates | None,
    ):
        self._device = device
        self._stream = device.stream()
        self._embeddings = weights["token_embd.weight"]
        layers = [block.experts for block in weights.blk if block.experts]
        self._weights = DeviceWeights(device)
        self.slots = ExpertSlots(device, layers, self._weights, policy)
        graphs = {n: make_graph(n, n) for n in dict.fromkeys((1, n_batch))}
        self._caches = _allocate_caches(device, graphs[n_batch])
        self.programs = {
            n: StepProgram(device, graph, n, self._weights, self._caches, n_threads)
            for n, graph in graphs.items()
        }
        self.ways = [self.programs[1]]
        """Of running one token."""
        sections = self.programs[1].sections
        linked = [
            rows_over_link(experts, rates, can_cut=not section.after_down) if rates else 0
            for experts, section in zip(layers, sections, strict=True)
        ]
        if any(linked):
            way = StepProgram(device, graphs[1], 1, self._weights, self._caches, n_threads, linked)
            self.ways.append(way)
        self.trial = Trial(len(self.ways))
        self._long = LongPrompts(make_graph, layers, n_ctx, n_batch, prompt_bytes)
        self._last: StepProgram | PromptProgram = self.programs[1]
        self._n_threads = n_threads
        self._number = 0
        self._n_tokens = 0
        self._step_s = 0.0
        self._waited = device.pinned(8).view(np.int64)
        self._crew: Crew | None = None
        self._library: KernelLibrary | None = None
        self._staged: np.ndarray | None = None

    @property
    def kernels(self) -> list[str]:
        """The GPU kernels of all steps."""
        kernels = [launch.kernel for program in self._hybrids for launch in program.launches]
        return list(dict.fromkeys([*kernels, *self._long.kernels]))

    @property
    def n_threads(self) -> int:
        """Threads of the crew."""
        return self._n_threads

    @property
    def rows(self) -> list[Row]:
        """The crew's rows of all steps."""
        return [row for program in self._hybrids for row in program.rows]

    @property
    def uses_link(self) -> bool:
        """Whether the link within a step was found to be faster."""
        return self.trial.best > 0

    @property
    def _hybrids(self) -> list[StepProgram]:
        return [*self.programs.values(), *self.ways[1:]]

    @property
    def embedding_kernel(self) -> str:
        """The CPU kernel that makes float32 of a row of the token embeddings."""
        return f"{self._embeddings.qtype.name.lower()}.dequantize"

    def allocate_slots(self, slots_per_layer: Sequence[int], spare: int = 0) -> None:
        """Make room for so many experts of each layer that has some. Raises OutOfMemoryError.

        spare: bytes that may be used besides.
        """
        self.slots.allocate(slots_per_layer)
        self._long.prepare(self._device, self._weights, self.slots, self._caches, spare)

    def start(self, library: KernelLibrary) -> None:
        """Put the programs together and make the threads; all kernels must have been prepared."""
        self._library = library
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)
        self._dequantize = signature(library.address(self.embedding_kernel))
        for program in self._hybrids:
            program.program = Program(program.rows, library)
        self._crew = Crew(self._n_threads, library)
        while not self._weights.is_ready:
            wait(self._device, self._stream, STEP_LIMIT_S)

    def long_step(self, n_left: int, n_outputs: int) -> int:
        return self._long.n_tokens(n_left, n_outputs)

    def run(self, step: Step) -> np.ndarray:
        assert self._crew is not None
        self._number += 1
        self.slots.commit_arrived()
        start = time.perf_counter()
        n = len(step.tokens)
        if prompt := self._long.program_for(n):
            self._run_prompt(prompt, step)
            self._long.threshold.streamed(time.perf_counter() - start)
            self.slots.prefilled(prompt.chosen(n), n)
            self._last = prompt
        else:
            program = self.ways[self.trial.way] if n == 1 else self.programs[max(self.programs)]
            self.slots.take_back()
            self._run_hybrid(program, step)
            if n == 1:
                self.trial.took(time.perf_counter() - start)
            if n == program.n_tokens > 1:
                self._long.threshold.computed(n, time.perf_counter() - start)
            self.slots.used(program.chosen(n))
            self._last = program
        self._n_tokens += n
        self._step_s += time.perf_counter() - start
        return self._last.logits(len(step.outputs))

    def _run_hybrid(self, program: StepProgram, step: Step) -> None:
        assert self._crew is not None
        assert program.program is not None
        program.write_inputs(self._number, step, self._embed)
        program.mailbox.set_abort(False)
        watch = _Watch(self._device, self._stream, program, self._number)
        try:
            program.start(self._stream, self.slots)
            self._crew.run(program.program, watch)
            wait(self._device, self._stream, STEP_LIMIT_S)
        except BaseException:
            program.mailbox.set_abort(True)
            self._leave(program)
            raise
        if program.mailbox.aborted:
            self._leave(program)
            raise DeviceError("the GPU waited too long for the CPU and gave a step up; try again.")

    def _run_prompt(self, prompt: PromptProgram, step: Step) -> None:
        try:
            prompt.start(self._number, step, self._embed, self._stream)
        finally:
            for stream in (self._stream, *prompt.streams):
                wait(self._device, stream, STEP_LIMIT_S)

    def usage(self) -> Usage:
        """What happened since loading. Between steps only."""
        counts, prompt = self.slots.cache.counts, self._long.program
        return Usage(
            n_tokens=self._n_tokens,
            hits=counts.hits,
            misses=counts.misses,
            uploads=counts.uploads,
            uploaded_bytes=self.slots.uploaded_bytes + (prompt.streamed_bytes if prompt else 0),
            step_s=self._step_s,
            gpu_waited_s=sum(self._waited_ns(program) for program in self._hybrids) / 1e9,
            cpu_waited_s=self._crew.waited_s if self._crew else 0.0,
        )

    def chosen(self, n_tokens: int) -> list[np.ndarray]:
        return [np.array(ids, np.int32).reshape(n_tokens, -1) for ids in self._last.chosen(n_tokens)]

    def read(self, name: str, start: int, nbytes: int) -> np.ndarray:
        found = np.empty(nbytes, np.uint8)
        staging = self._staging()
        address = staging.__array_interface__["data"][0]
        for at in range(0, nbytes, STAGING):
            n = min(STAGING, nbytes - at)
            self._device.copy(self._stream, address, self._caches[name] + start + at, n)
            wait(self._device, self._stream, STEP_LIMIT_S)
            found[at : at + n] = staging[:n]
        return found

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        staging = self._staging()
        address = staging.__array_interface__["data"][0]
        for at in range(0, data.nbytes, STAGING):
            n = min(STAGING, data.nbytes - at)
            staging[:n] = data[at : at + n]
            self._device.copy(self._stream, self._caches[name] + start + at, address, n)
            wait(self._device, self._stream, STEP_LIMIT_S)

    def _staging(self) -> np.ndarray:
        """Main memory for parts of the caches on their way, u8 [STAGING]; made at the first call."""
        if self._staged is None:
            self._staged = self._device.pinned(STAGING)
        return self._staged

    def close(self) -> None:
        if self._crew:
            self._crew.close()
        self._crew = None
        self.programs.clear()
        self.ways.clear()
        self.slots.close()
        self._device.close()

    def _waited_ns(self, program: StepProgram) -> int:
        address = self._waited.__array_interface__["data"][0]
        self._device.copy(self._stream, address, waited_address(program.memory), self._waited.nbytes)
        wait(self._device, self._stream, STEP_LIMIT_S)
        return int(self._waited[0])

    def _leave(self, program: StepProgram) -> None:
        """After a step that was given up: wait until the GPU has left it, and forget that it was."""
        wait(self._device, self._stream, STEP_LIMIT_S)
        program.forget_abort(self._stream)
        wait(self._device, self._stream, STEP_LIMIT_S)

    def _embed(self, tokens: Sequence[int], out: np.ndarray) -> None:
        tensor: Tensor = self._embeddings
        n = tensor.shape[0]
        size, target = tensor.qtype.row_size(n), out.__array_interface__["data"][0]
        for i, token in enumerate(tokens):
            self._dequantize(tensor.address + token * size, target + 4 * n * i, n)


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


def _allocate_caches(device: Device, graph: Graph) -> dict[str, int]:
    """The KV cache and the states of recurrent layers: buffers that tasks of every step share."""
    return {
        buffer.name: device.allocate(buffer.rows * row_size(buffer))
        for buffer in graph.buffers().values()
        if buffer.name.startswith(("cache_", "conv_states_", "ssm_states_"))
    }
