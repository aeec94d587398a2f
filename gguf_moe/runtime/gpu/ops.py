"""One task of a graph as kernels of the GPU: their names and arguments, op by op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Graph, Op, Rows, Task
from gguf_moe.runtime.gpu.delta_net import LOWER as DELTA_NET
from gguf_moe.runtime.gpu.delta_net import check_delta_net
from gguf_moe.runtime.gpu.heads import LOWER as HEADS
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.lower import Lowered, given_ids, matmul_id_sizes
from gguf_moe.runtime.memory import row_size
from gguf_moe.runtime.program import Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.cuda.attention_launch import attention_scores_stride, attention_splits

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
    if missing := sorted({task.op for task in graph.tasks} - set(_LOWER)):
        raise UnsupportedModelError(
            f"the GPU does not have this model's {missing[0]} operation yet; use --device cpu."
        )
    for task in graph.tasks:
        if task.op is Op.GATED_DELTA_NET:
            check_delta_net(task)


def kernels_of_task(task: Task, memory: DeviceMemory) -> list[Lowered]:
    """The kernels of a task, one after the other."""
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
    special: dict[str, Value],
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


GpuLowered = Iterator[Lowered]


def _get_rows(task: Task, memory: DeviceMemory) -> GpuLowered:
    n = task.outputs["out"].cols
    yield "get_rows.get_rows_f32", structs.GET_ROWS, {"row_size": 4 * n, "n": n}


def _quantize(task: Task, memory: DeviceMemory) -> GpuLowered:
    out = task.outputs["out"]
    special: dict[str, Value] = {"n": out.cols, "out_stride": row_size(out)}
    yield f"activation.quantize_{out.kind.value}", structs.QUANTIZE, special


def _rms_norm(task: Task, memory: DeviceMemory) -> GpuLowered:
    n = task.inputs["x"].cols // task.options["n_head"]
    yield "elementwise.rms_norm", structs.RMS_NORM, {"n": n}


def _scale(task: Task, memory: DeviceMemory) -> GpuLowered:
    yield "elementwise.scale", structs.SCALE, {"n": task.outputs["out"].cols}


def _matmul(task: Task, memory: DeviceMemory) -> GpuLowered:
    weight = task.tensor("weight")
    n_in, n_out = weight.shape
    special: dict[str, Value] = {
        "row_size": weight.qtype.row_size(n_in),
        "n_out": n_out,
        "n_in": n_in,
        "x_stride": row_size(task.inputs["x"]),
    }
    yield f"matmul.matmul_{weight.qtype.name.lower()}", structs.MATMUL, special


def _matmul_id(task: Task, memory: DeviceMemory) -> GpuLowered:
    weight = task.experts("weight")
    special: dict[str, Value] = {
        "tiles": [int(qtype) for qtype in weight.qtypes],
        "weights": memory.weights.table(weight),
        **matmul_id_sizes(task, memory.address),
    }
    for qtype in dict.fromkeys(weight.qtypes):
        yield f"matmul.matmul_id_{qtype.name.lower()}", structs.MATMUL_ID, special


def _rope(task: Task, memory: DeviceMemory) -> GpuLowered:
    n_embd_head = task.outputs["x"].cols // task.options["n_head"]
    x = memory.address(task.outputs["x"]) + 4 * task.options.get("first", 0)
    yield "elementwise.rope", structs.ROPE, {"n_embd_head": n_embd_head, "x": x}


def _kv_store(task: Task, memory: DeviceMemory) -> GpuLowered:
    cache = task.outputs["cache"]
    yield f"elementwise.kv_store_{cache.kind.value}", structs.KV_STORE, {"n": cache.cols}


def _attention(task: Task, memory: DeviceMemory) -> GpuLowered:
    k, v, q = task.inputs["k"], task.inputs["v"], task.inputs["q"]
    n_head, n_head_kv = task.options["n_head"], task.options["n_head_kv"]
    n_embd_head_v = task.outputs["out"].cols // n_head
    # With many tokens there are blocks enough without cutting the cache.
    splits = attention_splits(k.rows, task.options["n_swa"]) if q.rows == 1 else 1
    stride = attention_scores_stride(n_embd_head_v, splits)
    scores = memory.scratch(f"attention_scores_{stride}", q.rows * n_head * stride) if stride else 0
    special: dict[str, Value] = {
        "n_embd_head_k": k.cols // n_head_kv,
        "n_embd_head_v": n_embd_head_v,
        "v_width": v.cols,
        "scores": scores,
        "scores_stride": stride,
    }
    yield f"attention.attention_{k.kind.value}", structs.ATTENTION, special


def _moe_topk(task: Task, memory: DeviceMemory) -> GpuLowered:
    logits = task.outputs["logits"]
    special: dict[str, Value] = {"n_expert": logits.cols, "k": task.outputs["ids"].cols}
    if "selection" not in task.outputs:
        special["selection"] = memory.address(logits)
    yield "moe.moe_topk", structs.MOE_TOPK, special | given_ids(task, memory.address)


def _expert_rows(task: Task, memory: DeviceMemory) -> GpuLowered:
    special: dict[str, Value] = {"n_expert": task.outputs["used"].cols, "k": task.inputs["ids"].cols}
    yield "moe.expert_rows", structs.EXPERT_ROWS, special


def _moe_sum(task: Task, memory: DeviceMemory) -> GpuLowered:
    special: dict[str, Value] = {"k": task.inputs["place"].cols, "n": task.outputs["out"].cols}
    yield "moe.moe_sum", structs.MOE_SUM, special


def _gated_unit(task: Task, memory: DeviceMemory) -> GpuLowered:
    struct = {Op.SWIGLU: structs.SWIGLU, Op.SWIGLU_OAI: structs.SWIGLU_OAI, Op.GEGLU: structs.GEGLU}[task.op]
    yield f"elementwise.{task.op}", struct, {"n": task.outputs["gate"].cols}


def _softcap(task: Task, memory: DeviceMemory) -> GpuLowered:
    yield "elementwise.softcap", structs.SOFTCAP, {"n": task.outputs["x"].cols}


def _by_choice(task: Task, memory: DeviceMemory) -> GpuLowered:
    struct = structs.ADD_ID if task.op is Op.ADD_ID else structs.SCALE_ID
    yield f"moe.{task.op}", struct, {"k": task.inputs["ids"].cols, "n": task.outputs["x"].cols}


def _weigh(task: Task, memory: DeviceMemory) -> GpuLowered:
    yield "moe.weigh", structs.WEIGH, {"k": task.inputs["place"].cols, "n": task.outputs["out"].cols}


def _shexp_gate(task: Task, memory: DeviceMemory) -> GpuLowered:
    yield "moe.shexp_gate", structs.SHEXP_GATE, {"n_in": task.inputs["x"].cols, "n": task.outputs["out"].cols}


_LOWER: dict[Op, Callable[[Task, DeviceMemory], GpuLowered]] = {
    Op.GET_ROWS: _get_rows,
    Op.QUANTIZE: _quantize,
    Op.RMS_NORM: _rms_norm,
    Op.SCALE: _scale,
    Op.MATMUL: _matmul,
    Op.MATMUL_ID: _matmul_id,
    Op.ROPE: _rope,
    Op.KV_STORE: _kv_store,
    Op.ATTENTION: _attention,
    Op.MOE_TOPK: _moe_topk,
    Op.EXPERT_ROWS: _expert_rows,
    Op.MOE_SUM: _moe_sum,
    Op.SWIGLU: _gated_unit,
    Op.SWIGLU_OAI: _gated_unit,
    Op.GEGLU: _gated_unit,
    Op.SOFTCAP: _softcap,
    Op.ADD_ID: _by_choice,
    Op.SCALE_ID: _by_choice,
    Op.WEIGH: _weigh,
    Op.SHEXP_GATE: _shexp_gate,
    **DELTA_NET,
    **HEADS,
}
