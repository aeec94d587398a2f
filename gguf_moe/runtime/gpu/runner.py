"""A context's steps on a GPU, with the crew for the experts that the GPU does not hold."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import DeviceError
from gguf_moe.graph.task import Graph, Kind, Rows
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.branches import Branches
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.fuse import fuse
from gguf_moe.runtime.gpu.lower import (
    Launch,
    expert_sections,
    lower_to_crew,
    lower_to_gpu,
    ready_words,
    waited_address,
)
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.memory import DeviceMemory, DeviceWeights
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.gpu.usage import Usage
from gguf_moe.runtime.memory import Memory, row_size
from gguf_moe.runtime.program import Program, Row
from gguf_moe.runtime.runner import Step
from gguf_moe_kernels.cpu.library import KernelLibrary

STEP_LIMIT_S = 60.0
"""How long the GPU may take after the crew has finished its part of a step."""
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
    ):
        self.n_tokens = n_tokens
        self._device = device
        buffers = graph.buffers()
        inputs = [name for name in buffers if name.endswith(("_cos", "_sin"))]
        inputs += ["inp_tokens", "out_ids", "injected_topk", "inp_attn_scale"]
        # Token embeddings are looked up in main memory and come as an input.
        embedded = next(task for task in graph.tasks if task.name == "inp_embd").outputs["out"]
        self._embedded = embedded.name
        self.memory = DeviceMemory(device, weights, buffers.values(), inputs, caches)
        self._embeddings = device.pinned(n_tokens * row_size(embedded))
        self._embedded_address = self.memory.address(embedded)
        self.n_embd = embedded.cols
        self.sections = expert_sections(graph)
        x = {buffer.name: buffer for section in self.sections for buffer in section.x}
        n_places = max((s.sum.inputs["x"].rows for s in self.sections), default=1)
        answers = {s.sum.inputs["x"].name: s.sum.inputs["x"] for s in self.sections}
        exchanged = [*x.values(), *answers.values()]
        self.mailbox = Mailbox(device, len(self.sections), n_places, exchanged)
        self.host_memory = Memory()
        self.launches: list[Launch] = fuse(lower_to_gpu(graph, self.memory, self.mailbox), n_tokens)
        self.rows: list[Row] = lower_to_crew(graph, self.host_memory, self.mailbox, n_threads)
        logits = buffers["result_output"]
        self.n_vocab = logits.cols
        self._logits_address = self.memory.address(logits)
        self._logits = device.pinned(n_tokens * row_size(logits))
        self._zeros = device.pinned(ready_words(self.memory, len(self.sections))[1])
        self.program: Program | None = None
        self.n_expert_used = self.sections[0].rows.inputs["ids"].cols if self.sections else 1
        self._graph: Any = None

    def write_inputs(
        self, number: int, step: Step, embed: Callable[[Sequence[int], np.ndarray], None]
    ) -> None:
        """Put what the step needs where the device will copy it from."""
        n, n_outputs = len(step.tokens), len(step.outputs)
        n_places = n * self.n_expert_used
        self.memory.set_step(number, step.n_past, n, n_outputs, n_places)
        self.host_memory.set_step(step.n_past, n, n_outputs, n_places, number)
        self.memory.input("inp_tokens")[:n, 0] = step.tokens
        self.memory.input("out_ids")[:n_outputs, 0] = step.outputs
        for name, rows in step.inputs.items():
            self.memory.input(name)[:n] = rows
        embed(step.tokens, self._embeddings.view(np.float32).reshape(-1, self.n_embd))

    def queue(self, stream: Any, branches: Branches, slots: ExpertSlots) -> None:
        """Put all of a step on the stream: inputs, kernels, logits."""
        self.memory.copy_inputs(stream)
        slots.copy_tables(stream)
        source = self._embeddings.__array_interface__["data"][0]
        self._device.copy(stream, self._embedded_address, source, self._embeddings.nbytes)
        branches.queue(self.launches, self.launch)
        target = self._logits.__array_interface__["data"][0]
        self._device.copy(stream, target, self._logits_address, self._logits.nbytes)

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
        return self._logits.view(np.float32).reshape(-1, self.n_vocab)[:n_outputs]

    def chosen(self, n: int) -> list[list[int]]:
        """For each layer with experts the ids that the router chose for n tokens."""
        return [self.mailbox.chosen(layer, n * self.n_expert_used) for layer in range(len(self.sections))]


class GpuRunner:
    """Runs steps of one token or of up to n_batch tokens; the KV cache and all dense weights are on the GPU.

    `make_graph(n_tokens)` builds a graph of that size. Before `start` comes `allocate_slots`.
    """

    def __init__(
        self,
        device: Device,
        weights: Weights,
        make_graph: Callable[[int], Graph],
        *,
        n_batch: int,
        n_threads: int,
        policy: str,
    ):
        self._device = device
        self._stream = device.stream()
        self._embeddings = weights["token_embd.weight"]
        layers = [block.experts for block in weights.blk if block.experts]
        self._weights = DeviceWeights(device)
        self.slots = ExpertSlots(device, layers, self._weights, policy)
        graphs = {n: make_graph(n) for n in dict.fromkeys((1, n_batch))}
        self._caches = _allocate_caches(device, graphs[n_batch])
        self.programs = {
            n: StepProgram(device, graph, n, self._weights, self._caches, n_threads)
            for n, graph in graphs.items()
        }
        self._n_threads = n_threads
        self._number = 0
        self._n_tokens = 0
        self._step_s = 0.0
        self._waited = device.pinned(8).view(np.int64)
        self._crew: Crew | None = None
        self._library: KernelLibrary | None = None

    @property
    def kernels(self) -> list[str]:
        """The GPU kernels of all steps."""
        return list(dict.fromkeys(launch.kernel for p in self.programs.values() for launch in p.launches))

    @property
    def n_threads(self) -> int:
        """Threads of the crew."""
        return self._n_threads

    @property
    def rows(self) -> list[Row]:
        """The crew's rows of all steps."""
        return [row for program in self.programs.values() for row in program.rows]

    @property
    def embedding_kernel(self) -> str:
        """The CPU kernel that makes float32 of a row of the token embeddings."""
        return f"{self._embeddings.qtype.name.lower()}.dequantize"

    def allocate_slots(self, slots_per_layer: Sequence[int]) -> None:
        """Make room for so many experts of each layer that has some. Raises OutOfMemoryError."""
        self.slots.allocate(slots_per_layer)

    def start(self, library: KernelLibrary) -> None:
        """Put the programs together and make the threads; all kernels must have been prepared."""
        self._library = library
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)
        self._dequantize = signature(library.address(self.embedding_kernel))
        for program in self.programs.values():
            program.program = Program(program.rows, library)
        self._crew = Crew(self._n_threads, library)
        while not self._weights.is_ready:
            wait(self._device, self._stream, STEP_LIMIT_S)

    def run(self, step: Step) -> np.ndarray:
        start = time.perf_counter()
        program = self._program_for(len(step.tokens))
        assert self._crew is not None
        assert program.program is not None
        self._number += 1
        self.slots.commit_arrived()
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
        self.slots.used(program.chosen(len(step.tokens)))
        self._n_tokens += len(step.tokens)
        self._step_s += time.perf_counter() - start
        return program.logits(len(step.outputs))

    def usage(self) -> Usage:
        """What happened since loading. Between steps only."""
        counts = self.slots.cache.counts
        return Usage(
            n_tokens=self._n_tokens,
            hits=counts.hits,
            misses=counts.misses,
            uploads=counts.uploads,
            uploaded_bytes=self.slots.uploaded_bytes,
            step_s=self._step_s,
            gpu_waited_s=sum(self._waited_ns(program) for program in self.programs.values()) / 1e9,
            cpu_waited_s=self._crew.waited_s if self._crew else 0.0,
        )

    def chosen(self, n_tokens: int) -> list[np.ndarray]:
        program = self._program_for(n_tokens)
        return [np.array(ids, np.int32).reshape(n_tokens, -1) for ids in program.chosen(n_tokens)]

    def close(self) -> None:
        if self._crew:
            self._crew.close()
        self._crew = None
        self.programs.clear()
        self.slots.close()
        self._device.close()

    def _program_for(self, n_tokens: int) -> StepProgram:
        return self.programs[1 if n_tokens == 1 else max(self.programs)]

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
    """The KV cache: buffers that tasks of every step share."""
    return {
        buffer.name: device.allocate(buffer.rows * row_size(buffer))
        for buffer in graph.buffers().values()
        if buffer.name.startswith("cache_") and buffer.kind in (Kind.F16, Kind.F32)
    }
