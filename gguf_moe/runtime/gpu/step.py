"""What goes into a step on the GPU and comes out of it: its numbers, inputs and token embeddings; logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gguf_moe.graph.task import Graph
from gguf_moe.runtime.gpu.device import Device
from gguf_moe.runtime.gpu.memory import DeviceMemory, DeviceWeights
from gguf_moe.runtime.memory import row_size
from gguf_moe.runtime.runner import Step

Embed = Callable[[Sequence[int], np.ndarray], None]
"""embed(tokens, out) writes the tokens' embeddings, float32 [n, n_embd]."""


class StepBuffers:
    """A graph's memory on the device, and the pinned memory that is copied before and after a step of it."""

    def __init__(
        self,
        device: Device,
        graph: Graph,
        n_tokens: int,
        weights: DeviceWeights,
        caches: dict[str, int],
        allocate: Callable[[int], int] | None = None,
    ):
        self._device = device
        buffers = graph.buffers()
        inputs = [name for name in buffers if name.endswith(("_cos", "_sin"))]
        inputs += ["inp_tokens", "out_ids", "injected_topk", "inp_attn_scale"]
        # Token embeddings are looked up in main memory and come as an input.
        embedded = next(task for task in graph.tasks if task.name == "inp_embd").outputs["out"]
        self.memory = DeviceMemory(device, weights, buffers.values(), inputs, caches, allocate)
        self._embeddings = device.pinned(n_tokens * row_size(embedded))
        self._embedded_address = self.memory.address(embedded)
        self._n_embd = embedded.cols
        logits = buffers["result_output"]
        self._n_vocab = logits.cols
        self._logits_address = self.memory.address(logits)
        self._logits = device.pinned(logits.rows * row_size(logits))

    def write(self, number: int, step: Step, n_places: int, embed: Embed) -> None:
        """Put what the step needs where the device will copy it from; `number` counts steps."""
        n, n_outputs = len(step.tokens), len(step.outputs)
        self.memory.set_step(step.n_past, n, n_outputs, n_places, number)
        self.memory.input("inp_tokens")[:n, 0] = step.tokens
        self.memory.input("out_ids")[:n_outputs, 0] = step.outputs
        for name, rows in step.inputs.items():
            self.memory.input(name)[:n] = rows
        embed(step.tokens, self._embeddings.view(np.float32).reshape(-1, self._n_embd))

    def copy_in(self, stream: Any) -> None:
        """Queue the copies that come before the kernels."""
        self.memory.copy_inputs(stream)
        source = self._embeddings.__array_interface__["data"][0]
        self._device.copy(stream, self._embedded_address, source, self._embeddings.nbytes)

    def copy_out(self, stream: Any) -> None:
        """Queue the copy of the logits."""
        target = self._logits.__array_interface__["data"][0]
        self._device.copy(stream, target, self._logits_address, self._logits.nbytes)

    def logits(self, n_outputs: int) -> np.ndarray:
        """Of the step that was run last: float32 [n_outputs, n_vocab]."""
        return self._logits.view(np.float32).reshape(-1, self._n_vocab)[:n_outputs]
