"""Long chunks of a prompt on the GPU alone: experts that it does not hold pass through its memory.

Each layer's missing experts are copied while earlier layers are computed, whatever the routers will choose: a
long chunk uses nearly all of them. So nothing of a step waits for the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gguf_moe.graph.task import Graph, Op, Rows, Task
from gguf_moe.runtime.gpu.device import Device, wait
from gguf_moe.runtime.gpu.kv import move_addresses
from gguf_moe.runtime.gpu.memory import NOWHERE, Area, DeviceWeights
from gguf_moe.runtime.gpu.ops import HOST_OPS, Launch, lower_alone
from gguf_moe.runtime.gpu.ring import Ring, Wave
from gguf_moe.runtime.gpu.slots import ExpertSlots
from gguf_moe.runtime.gpu.step import Embed, StepBuffers
from gguf_moe.runtime.runner import Step
from gguf_moe_kernels.cuda.attention_launch import WIDEST
from gguf_moe_kernels.quants import GGMLType

FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclass(frozen=True, slots=True)
class Room:
    """What streaming takes of the device's memory."""

    n_tokens: int
    piece_size: int
    n_pieces: int
    nbytes: int
    """All of it."""


def prompt_kernels(graph: Graph) -> list[str]:
    """The kernels of a PromptProgram for this graph."""
    tasks = [task for task in graph.tasks if task.name not in HOST_OPS]
    return [_for_many(launch).kernel for task in tasks for launch in lower_alone(task, NOWHERE)]


class PromptProgram:
    """Steps of up to n_tokens tokens in which the GPU computes everything.

    Its memory is its own or, if is_lent, the end of the slots': then the experts there give way meanwhile.

    A matrix of a layer's experts is one task in the graph. Here it is a launch for the experts that the
    device holds, and one for each wave of the others.
    """

    def __init__(
        self,
        device: Device,
        graph: Graph,
        room: Room,
        weights: DeviceWeights,
        slots: ExpertSlots,
        caches: dict[str, int],
        is_lent: bool,
    ):
        self.n_tokens = room.n_tokens
        self._device = device
        self._slots = slots
        self.lent_bytes = room.nbytes if is_lent else 0
        """Bytes of the slots' memory that a chunk borrows."""
        area = slots.memory.area(room.nbytes) if is_lent else Area(device.allocate(room.nbytes), room.nbytes)
        self._buffers = StepBuffers(device, graph, room.n_tokens, weights, caches, area.allocate)
        self._ring = Ring(device, room.piece_size, room.n_pieces, area.allocate)
        memory = self._buffers.memory
        self._tasks = [
            (task, [_for_many(launch) for launch in lower_alone(task, memory)])
            for task in graph.tasks
            if task.name not in HOST_OPS
        ]
        self._ids = [task.inputs["ids"] for task, _ in self._tasks if task.op is Op.EXPERT_ROWS]
        self._id_addresses = [memory.address(ids) for ids in self._ids]
        self._n_expert_used = self._ids[0].cols
        self._chosen = device.pinned(4 * room.n_tokens * self._n_expert_used * len(self._ids))
        n_waves = sum(self._n_waves(task) for task, _ in self._tasks if task.op is Op.MATMUL_ID)
        self._host_tables = device.pinned(8 * n_waves * slots.n_expert)
        self._tables = self._host_tables.view(np.int64).reshape(n_waves, slots.n_expert)
        self._device_tables = device.allocate(self._host_tables.nbytes)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of experts that came through the ring so far."""
        return self._ring.copied_bytes

    def run(self, number: int, step: Step, embed: Embed, stream: Any) -> None:
        """Run a step, of this number since loading, to its end."""
        try:
            self._queue(number, step, embed, stream)
        finally:
            for working in (stream, self._ring.stream):
                wait(self._device, working)

    def move(self, moved: Mapping[int, int]) -> None:
        """Buffers that it shares with others have other addresses from now on."""
        move_addresses((launch.arguments for _, launches in self._tasks for launch in launches), moved)

    def logits(self, n_outputs: int) -> np.ndarray:
        """Of the step that was run last: float32 [n_outputs, n_vocab]."""
        return self._buffers.logits(n_outputs)

    def chosen(self, n: int) -> np.ndarray:
        """The ids that the routers of layers with experts chose for n tokens: int32 [layers, n * used]."""
        ids = self._chosen.view(np.int32).reshape(len(self._ids), -1)
        return ids[:, : n * self._n_expert_used].copy()

    def _queue(self, number: int, step: Step, embed: Embed, stream: Any) -> None:
        """Put all of a step on the stream. The experts come first, as their copies take the longest."""
        self._slots.lend(self.lent_bytes)
        waves = self._plan()
        self._ring.start(stream, [wave for task_waves in waves.values() for wave in task_waves])
        self._buffers.write(number, step, len(step.tokens) * self._n_expert_used, embed)
        self._buffers.copy_in(stream)
        self._slots.tables.copy(stream)
        source = self._host_tables.__array_interface__["data"][0]
        self._device.copy(stream, self._device_tables, source, self._host_tables.nbytes)
        n_places, done = len(step.tokens) * self._n_expert_used, 0
        for task, launches in self._tasks:
            if task.op is not Op.MATMUL_ID:
                rows = n_places if task.rows is Rows.PLACES else len(step.tokens)
                self._launch(stream, launches, rows if task.rows is not Rows.OUTPUTS else len(step.outputs))
                continue
            n_held = self._slots.n_expert - sum(len(experts) for _, experts in waves[id(task)])
            if n_held:
                self._launch(stream, launches, n_places, n_held)
            for _, experts in waves[id(task)]:
                table = self._device_tables + 8 * self._slots.n_expert * done
                self._device.wait_for(stream, self._ring.arrival())
                self._launch(stream, [_with_table(x, table) for x in launches], n_places, len(experts))
                self._ring.release(self._device.event(stream))
                done += 1
        self._copy_out(stream)

    def _plan(self) -> dict[int, list[Wave]]:
        """The waves of each task with experts, by its id. Writes their tables."""
        plan: dict[int, list[Wave]] = {}
        n_waves = 0
        for task, _ in self._tasks:
            if task.op is not Op.MATMUL_ID:
                continue
            tensors, waves = task.experts("weight"), plan.setdefault(id(task), [])
            missing, size = self._slots.tables.missing(tensors), self._ring.n_in_wave(tensors)
            for start in range(0, len(missing), size):
                experts = missing[start : start + size]
                self._tables[n_waves] = 0
                self._tables[n_waves, experts] = self._ring.addresses(n_waves, tensors, len(experts))
                waves.append((tensors, experts))
                n_waves += 1
        return plan

    def _n_waves(self, task: Task) -> int:
        """The most waves that a task can need."""
        return -(-self._slots.n_expert // self._ring.n_in_wave(task.experts("weight")))

    def _launch(
        self, stream: Any, launches: Iterable[Launch], rows: int, n_experts: int | None = None
    ) -> None:
        """Start kernels. With n_experts it is those of so many experts, which get that share of the rows."""
        for launch in launches:
            most = rows
            if n_experts is not None and launch.kernel.startswith(MANY):
                most = rows * n_experts // self._slots.n_expert
            self._device.launch(stream, launch.kernel, launch.arguments, most)

    def _copy_out(self, stream: Any) -> None:
        self._buffers.copy_out(stream)
        address, size = self._chosen.__array_interface__["data"][0], self._chosen.nbytes // len(self._ids)
        for layer, ids in enumerate(self._id_addresses):
            self._device.copy(stream, address + layer * size, ids, size)


MANY = "many_tokens."
_FLOATS = tuple(qtype.name.lower() for qtype in FLOAT_TYPES)


def _for_many(launch: Launch) -> Launch:
    """The same with a kernel for many tokens, if there is one that is faster."""
    file, _, function = launch.kernel.partition(".")
    arguments = launch.arguments
    if file == "matmul" and not function.startswith("matmul_heads") and not function.endswith(_FLOATS):
        return replace(launch, kernel=MANY + function)
    if file == "attention":
        width = max(arguments["n_embd_head_k"], arguments["n_embd_head_v"])
        if width <= WIDEST and not arguments["n_swa"]:
            return replace(launch, kernel=f"attention_many.{function}")
    return launch


def _with_table(launch: Launch, table: int) -> Launch:
    """The same for experts that lie where another table says."""
    arguments = launch.arguments.copy()
    arguments["weights"] = table
    return replace(launch, arguments=arguments)
