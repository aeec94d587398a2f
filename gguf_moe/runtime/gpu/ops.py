"""One task of a graph as kernels of the GPU: their names and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Graph, Op, Rows, Task
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.ops import (
    ALIKE,
    MATMULS,
    Lowered,
    attention_sizes,
    matmul_id_sizes,
    matmul_sizes,
)
from gguf_moe.runtime.program import Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.cuda.attention_launch import attention_scores_stride, attention_splits
from gguf_moe_kernels.cuda.launch import WIDEST_DELTA_NET_HEAD

HOST_OPS = frozenset({"inp_embd"})
"""Tasks that the host does before a step: token embeddings stay in main memory."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel of a step."""

    kernel: str
    arguments: np.ndarray
    rows: Rows
    after: tuple[int, ...]
    """Earlier launches that must be finished, by their numbers."""


def check_ops(graph: Graph) -> None:
    """Raise UnsupportedModelError if the GPU does not have an op of the graph, or not for such sizes."""
    if missing := sorted({task.op for task in graph.tasks} - OPS):
        raise UnsupportedModelError(
            f"the GPU does not have this model's {missing[0]} operation yet; use --device cpu."
        )
    for task in graph.tasks:
        if task.op is Op.GATED_DELTA_NET and (n := task.outputs["state"].cols) > WIDEST_DELTA_NET_HEAD:
            raise UnsupportedModelError(
                f"the GPU takes heads of up to {WIDEST_DELTA_NET_HEAD} elements in recurrent layers, but "
                f"this model has heads of {n}; use --device cpu."
            )


def kernels_of_task(task: Task, memory: DeviceMemory) -> list[Lowered]:
    """The kernels of a task, one after the other."""
    if alike := ALIKE.get(task.op):
        return [alike(task, memory.address)]
    return list(_LOWER[task.op](task, memory))


def lower_alone(task: Task, memory: DeviceMemory) -> list[Launch]:
    """The kernels of one task, in a step in which the GPU has all experts that it needs."""
    return [make_launch(task, memory, (), *kernel) for kernel in kernels_of_task(task, memory)]


def make_launch(
    task: Task,
    memory: DeviceMemory,
    after: tuple[int, ...],
    kernel: str,
    struct: np.dtype,
    special: Mapping[str, Value],
) -> Launch:
    """A kernel with its argument struct: what the task has under the fields' names, and `special`."""
    values: dict[str, Value] = {
        "n_past": memory.n_past_address,
        "rows": memory.rows_address(task.rows),
        **{name: memory.address(buffer) for name, buffer in (*task.inputs.items(), *task.outputs.items())},
        **{name: memory.weight_address(w) for name, w in task.weights.items() if isinstance(w, Tensor)},
        **task.options,
        **special,
    }
    arguments = np.zeros((), struct)
    for name in struct.names or ():
        value = values.get(name, 0)
        if isinstance(value, list):
            value = memory.weights.constant([int(v) for v in value])
        arguments[name] = value
    return Launch(kernel, arguments, task.rows, after)


def _get_rows(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    n = task.outputs["out"].cols
    yield "get_rows.get_rows_f32", structs.GET_ROWS, {"row_size": 4 * n, "n": n}


def _matmul(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    qtype = task.tensor("weight").qtype
    yield f"matmul.{task.op}_{qtype.name.lower()}", MATMULS[task.op], matmul_sizes(task)


def _matmul_id(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    weight = task.experts("weight")
    special: dict[str, Value] = {
        "tiles": [int(qtype) for qtype in weight.qtypes],
        "weights": memory.weights.table(weight),
        **matmul_id_sizes(task, memory.address),
    }
    for qtype in dict.fromkeys(weight.qtypes):
        yield f"matmul.matmul_id_{qtype.name.lower()}", structs.MATMUL_ID, special


def _attention(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    k, q, n_head = task.inputs["k"], task.inputs["q"], task.options["n_head"]
    # With many tokens there are blocks enough without cutting the cache.
    splits = attention_splits(k.rows, task.options["n_swa"]) if q.rows == 1 else 1
    stride = attention_scores_stride(task.outputs["out"].cols // n_head, splits)
    scores = memory.scratch(f"attention_scores_{stride}", q.rows * n_head * stride) if stride else 0
    special: dict[str, Value] = {**attention_sizes(task), "scores": scores, "scores_stride": stride}
    yield f"attention.attention_{k.kind.value}", structs.ATTENTION, special


_LOWER: dict[Op, Callable[[Task, DeviceMemory], Iterator[Lowered]]] = {
    Op.GET_ROWS: _get_rows,
    Op.MATMUL: _matmul,
    Op.MATMUL_ID: _matmul_id,
    Op.MATMUL_HEADS: _matmul,
    Op.ATTENTION: _attention,
}
OPS = frozenset({*ALIKE, *_LOWER})
"""What the GPU can do."""
