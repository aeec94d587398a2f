"""A context's steps on a GPU, with the crew for the experts that the GPU does not hold."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import numpy as np

from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import OutOfMemoryError
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.hybrid import StepProgram
from gguf_moe.runtime.gpu.kv import KvCaches
from gguf_moe.runtime.gpu.link import Rates, Trial, rows_over_link
from gguf_moe.runtime.gpu.long_prompts import LongPrompts, MakeGraph
from gguf_moe.runtime.gpu.memory import DeviceWeights
from gguf_moe.runtime.gpu.prompt import PromptProgram
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.gpu.usage import Usage
from gguf_moe.runtime.program import Program, Row
from gguf_moe.runtime.runner import Step
from gguf_moe_kernels.cpu.library import KernelLibrary


class GpuRunner:
    """Runs steps of one token or of up to n_batch tokens; the KV cache and all dense weights are on the GPU.

    Longer steps stream experts (long_prompts.py); for them prompt_bytes of the experts' memory may be lent.
    With rates, steps of one token may bring matrices of missing experts over the link (link.py). Before
    `start` comes `allocate_slots`.
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
        is_registered: bool = True,
    ):
        """is_registered: the device can read the file where it lies; rates are for such a file only."""
        self._device = device
        self._stream = device.stream()
        self._embeddings = weights["token_embd.weight"]
        layers = [block.experts for block in weights.blk if block.experts]
        self._weights = DeviceWeights(device)
        self.slots = ExpertSlots(device, layers, self._weights, policy, is_registered)
        graphs = {n: make_graph(n, n) for n in dict.fromkeys((1, n_batch))}
        self.caches = KvCaches(device, graphs[n_batch], n_ctx)
        addresses = self.caches.addresses
        self.programs = {
            n: StepProgram(device, graph, n, self._weights, addresses, n_threads)
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
            way = StepProgram(device, graphs[1], 1, self._weights, addresses, n_threads, linked)
            self.ways.append(way)
        self.trial = Trial(len(self.ways))
        self._long = LongPrompts(make_graph, layers, n_ctx, n_batch, prompt_bytes)
        self._last: StepProgram | PromptProgram = self.programs[1]
        self._n_threads = n_threads
        self._number = 0
        self._n_tokens = 0
        self._step_s = 0.0
        self._crew: Crew | None = None

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

    def allocate_slots(
        self, slots_per_layer: Sequence[int], spare: int = 0, kv_bytes: int | None = None
    ) -> None:
        """Make room for so many experts of each layer that has some. Raises OutOfMemoryError.

        spare: bytes that may be used besides. kv_bytes: of the KV cache at first, when it shall grow at the
        expense of experts; None is room for the whole context.
        """
        self.caches.leave()
        self.slots.allocate(
            slots_per_layer, self.caches.nbytes(self.caches.n_ctx) if kv_bytes is None else kv_bytes
        )
        self._move(self.caches.enter(self.slots.memory.front))
        self._prepare_long(spare)

    def _prepare_long(self, spare: int) -> None:
        self._long.prepare(self._device, self._weights, self.slots, self.caches.addresses, spare)

    def _move(self, moved: dict[int, int]) -> None:
        """Buffers of the KV cache have other addresses."""
        for program in self._hybrids:
            program.move(moved)
        for prompt in self._long.programs:
            prompt.move(moved)

    def start(self, library: KernelLibrary) -> None:
        """Put the programs together and make the threads; all kernels must have been prepared."""
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)
        self._dequantize = signature(library.address(self.embedding_kernel))
        for program in self._hybrids:
            program.program = Program(program.rows, library)
        self._weights.finish()
        self._crew = Crew(self._n_threads, library)

    def make_room(self, n_positions: int) -> None:
        """Give the KV cache room for so many positions, at the expense of experts. Between steps only.

        Raises OutOfMemoryError if all experts' memory is not enough; what was computed is still there then.
        """
        if n_positions <= self.caches.n_positions:
            return
        needed, available = self.caches.nbytes(n_positions), self.slots.memory.most_front_bytes
        if needed > available:
            raise OutOfMemoryError(
                f"the KV cache for {n_positions} positions needs {needed / 1e9:.2f} GB of GPU memory, but "
                f"{available / 1e9:.2f} GB may be used; give more (--vram) or use a shorter prompt."
            )
        self.slots.make_front(needed)
        if self._long.lent_bytes > self.slots.memory.nbytes:
            self._long.leave()
            self._prepare_long(spare=0)
        self._move(self.caches.grow(n_positions))

    def long_step(self, n_left: int, n_outputs: int) -> int:
        return self._long.n_tokens(n_left, n_outputs)

    def run(self, step: Step) -> np.ndarray:
        assert self._crew is not None
        self._number += 1
        self.make_room(step.n_past + len(step.tokens))
        start = time.perf_counter()
        n = len(step.tokens)
        if prompt := self._long.program_for(n):
            prompt.run(self._number, step, self._embed, self._stream)
            self._long.threshold.streamed(time.perf_counter() - start)
            self.slots.prefilled(prompt.chosen(n), n)
            self._last = prompt
        else:
            program = self.ways[self.trial.way] if n == 1 else self.programs[max(self.programs)]
            self.slots.begin_step()
            program.run(self._number, step, self._embed, self._stream, self.slots, self._crew)
            step_s = time.perf_counter() - start
            if n == 1:
                self.trial.took(step_s)
            if n == program.n_tokens > 1:
                self._long.threshold.computed(n, step_s)
            self.slots.used(program.chosen(n), step_s)
            self._last = program
        self._n_tokens += n
        self._step_s += time.perf_counter() - start
        return self._last.logits(len(step.outputs))

    def usage(self) -> Usage:
        """What happened since loading. Between steps only."""
        counts = self.slots.counts
        return Usage(
            n_tokens=self._n_tokens,
            hits=counts.hits,
            misses=counts.misses,
            uploads=counts.uploads,
            uploaded_bytes=self.slots.uploaded_bytes + self._long.streamed_bytes,
            step_s=self._step_s,
            gpu_waited_s=sum(program.waited_ns(self._stream) for program in self._hybrids) / 1e9,
            cpu_waited_s=self._crew.waited_s if self._crew else 0.0,
        )

    def chosen(self, n_tokens: int) -> list[np.ndarray]:
        return [ids.reshape(n_tokens, -1) for ids in self._last.chosen(n_tokens)]

    def read(self, name: str, start: int, nbytes: int) -> np.ndarray:
        return self.caches.read(name, start, nbytes)

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        self.make_room(self.caches.positions_of(name, start + data.nbytes))
        self.caches.write(name, start, data)

    def close(self) -> None:
        if self._crew:
            self._crew.close()
        self._crew = None
        self.programs.clear()
        self.ways.clear()
        self.slots.close()
        self._device.close()

    def _embed(self, tokens: Sequence[int], out: np.ndarray) -> None:
        tensor: Tensor = self._embeddings
        n = tensor.shape[0]
        size, target = tensor.qtype.row_size(n), out.__array_interface__["data"][0]
        for i, token in enumerate(tokens):
            self._dequantize(tensor.address + token * size, target + 4 * n * i, n)
