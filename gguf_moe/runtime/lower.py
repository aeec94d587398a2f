"""From a graph to the rows of the crew's program: for each task a kernel and its arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gguf_moe.checkpoint import Tensor
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Task
from gguf_moe.runtime.memory import Memory, row_size
from gguf_moe.runtime.program import Row, Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.quants import GGMLType

CHUNK_BYTES = 1 << 18
"""Weights in one chunk of a matmul: kernels ask for memory ahead of time, and a chunk's end loses that."""
ROWS_TOGETHER = 32
"""Rows of a weight that the kernels take side by side."""


def lower(graph: Graph, memory: Memory, n_threads: int) -> list[Row]:
    """The rows of the program, in the graph's order."""
    return [lower_task(task, memory, n_threads) for task in graph.tasks]


def lower_task(task: Task, memory: Memory, n_threads: int) -> Row:
    """The row of one task."""
    kernel, struct, special = _LOWER[task.op](task, memory, n_threads)
    values = _addresses_and_options(task, memory) | special
    return Row(task, kernel, struct, {name: values[name] for name in struct.names or ()})


def _addresses_and_options(task: Task, memory: Memory) -> dict[str, Value]:
    """What needs no thought: arguments named like the task's own buffers, weights and options."""
    return {
        "n_past": memory.n_past_address,
        "rows": memory.rows_address(task.rows),
        **{name: memory.address(buffer) for name, buffer in (*task.inputs.items(), *task.outputs.items())},
        **{name: weight.address for name, weight in task.weights.items() if isinstance(weight, Tensor)},
        **task.options,
    }


Lowered = tuple[str, np.dtype, dict[str, Value]]


def _get_rows(task: Task, memory: Memory, n_threads: int) -> Lowered:
    n = task.outputs["out"].cols
    qtype = task.tensor("weight").qtype if "weight" in task.weights else GGMLType.F32
    dequantize = f"{qtype.name.lower()}.dequantize"
    special: dict[str, Value] = {"dequantize": dequantize, "row_size": qtype.row_size(n), "n": n}
    return "elementwise.get_rows", structs.GET_ROWS, special


def _quantize(task: Task, memory: Memory, n_threads: int) -> Lowered:
    out = task.outputs["out"]
    special: dict[str, Value] = {"n": out.cols, "out_stride": row_size(out)}
    return f"activation.quantize_{out.kind.value}", structs.QUANTIZE, special


def _rms_norm(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n": task.inputs["x"].cols // task.options["n_head"]}
    return "elementwise.rms_norm", structs.RMS_NORM, special | _absent(task, "weight", "bias")


def _scale(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n": task.outputs["out"].cols}
    return "elementwise.scale", structs.SCALE, special | _absent(task, "residual")


def _matmul(task: Task, memory: Memory, n_threads: int) -> Lowered:
    weight = task.tensor("weight")
    n_in, n_out = weight.shape
    special: dict[str, Value] = {
        "tile": _tile(weight.qtype),
        "row_size": weight.qtype.row_size(n_in),
        "n_out": n_out,
        "n_in": n_in,
        "x_stride": row_size(task.inputs["x"]),
        "chunk_rows": _chunk_rows(weight.qtype.row_size(n_in), n_out, n_threads),
        "n_threads": n_threads,
    }
    return "matmul.matmul", structs.MATMUL, special | _absent(task, "bias", "residual")


def _matmul_id(task: Task, memory: Memory, n_threads: int) -> Lowered:
    weight = task.experts("weight")
    n_in, n_out = weight.shape
    special: dict[str, Value] = {
        "tiles": [_tile(qtype) for qtype in weight.qtypes],
        "weights": list(weight.addresses),
        "chunk_rows": _chunk_rows(max(qtype.row_size(n_in) for qtype in weight.qtypes), n_out, n_threads),
        "n_threads": n_threads,
    }
    special |= matmul_id_sizes(task, memory.address)
    return "matmul.matmul_id", structs.MATMUL_ID, special | _absent(task, "x_index")


def matmul_id_sizes(task: Task, address: Callable[[Buffer], int]) -> dict[str, Value]:
    """The sizes of MATMUL_ID's weights, and for each expert the activations that its type takes."""
    weight = task.experts("weight")
    n_in, n_out = weight.shape
    x = [task.inputs[ACTIVATION_FORMAT[qtype].value] for qtype in weight.qtypes]
    return {
        "row_sizes": [qtype.row_size(n_in) for qtype in weight.qtypes],
        "n_expert": len(weight.qtypes),
        "n_out": n_out,
        "n_in": n_in,
        "x": [address(buffer) for buffer in x],
        "x_stride": [row_size(buffer) for buffer in x],
    }


def _matmul_heads(task: Task, memory: Memory, n_threads: int) -> Lowered:
    weight, x = task.tensor("weight"), task.inputs["x"]
    n_in, n_out, n_head = weight.shape
    row_bytes = weight.qtype.row_size(n_in)
    special: dict[str, Value] = {
        "tile": _tile(weight.qtype),
        "row_size": row_bytes,
        "n_out": n_out,
        "n_in": n_in,
        "n_head": n_head,
        "x_stride": row_size(x) // (n_head if x.kind is Kind.F32 else 1),
        "chunk_rows": _chunk_rows(row_bytes, n_out * n_head, n_threads),
        "n_threads": n_threads,
    }
    return "matmul.matmul_heads", structs.MATMUL_HEADS, special


def _quantize_heads(task: Task, memory: Memory, n_threads: int) -> Lowered:
    out, n_head = task.outputs["out"], task.options["n_head"]
    special: dict[str, Value] = {
        "width": task.inputs["x"].cols // n_head,
        "n": out.cols,
        "out_stride": row_size(out),
    }
    return f"activation.quantize_heads_{out.kind.value}", structs.QUANTIZE_HEADS, special


def _concat(task: Task, memory: Memory, n_threads: int) -> Lowered:
    n_head = task.options["n_head"]
    n_a, b_width = (task.inputs[name].cols // n_head for name in ("a", "b"))
    return "elementwise.concat", structs.CONCAT, {"n_a": n_a, "b_width": b_width}


def _parts(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"x_width": task.inputs["x"].cols, "out_width": task.outputs["out"].cols}
    return "elementwise.parts", structs.PARTS, special


def _scale_rows(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.scale_rows", structs.SCALE_ROWS, {"n": task.outputs["x"].cols}


def _rope(task: Task, memory: Memory, n_threads: int) -> Lowered:
    x = task.outputs["x"]
    special: dict[str, Value] = {
        "n_embd_head": x.cols // task.options["n_head"],
        "x": memory.address(x) + 4 * task.options["first"],
    }
    return "elementwise.rope", structs.ROPE, special


def _kv_store(task: Task, memory: Memory, n_threads: int) -> Lowered:
    cache = task.outputs["cache"]
    special: dict[str, Value] = {"n": cache.cols}
    return f"elementwise.kv_store_{cache.kind.value}", structs.KV_STORE, special | _absent(task, "cells")


def _attention(task: Task, memory: Memory, n_threads: int) -> Lowered:
    k, v = task.inputs["k"], task.inputs["v"]
    group = task.options["n_head"] // task.options["n_head_kv"]
    at_once = max(n for n in structs.HEADS_AT_ONCE if group % n == 0)
    scores = Buffer(f"attention_scores_{at_once}", Kind.F32, n_threads * at_once, k.rows)
    special: dict[str, Value] = {
        "n_embd_head_k": k.cols // task.options["n_head_kv"],
        "n_embd_head_v": task.outputs["out"].cols // task.options["n_head"],
        "v_width": v.cols,
        "scores": memory.address(scores),
        "scores_stride": row_size(scores),
    }
    return (
        f"attention.attention_{k.kind.value}_{at_once}",
        structs.ATTENTION,
        special | _absent(task, "sinks", "cells"),
    )


def _moe_topk(task: Task, memory: Memory, n_threads: int) -> Lowered:
    logits = task.outputs["logits"]
    special: dict[str, Value] = {"n_expert": logits.cols, "k": task.outputs["ids"].cols}
    if "selection" not in task.outputs:
        special["selection"] = memory.address(logits)
    special |= given_ids(task, memory.address)
    return "moe.moe_topk", structs.MOE_TOPK, special | _absent(task, "bias", "group_scores")


def given_ids(task: Task, address: Callable[[Buffer], int]) -> dict[str, Value]:
    """Where MOE_TOPK finds the ids that it takes instead of choosing; zeros if it chooses."""
    if "given" not in task.inputs:
        return {"given": 0, "given_stride": 0}
    given, k = task.inputs["given"], task.outputs["ids"].cols
    first = address(given) + 4 * k * task.options["layer"]
    return {"given": first, "given_stride": row_size(given)}


def _expert_rows(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n_expert": task.outputs["used"].cols, "k": task.inputs["ids"].cols}
    return "moe.expert_rows", structs.EXPERT_ROWS, special


def _swiglu(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.swiglu", structs.SWIGLU, {"n": task.outputs["gate"].cols}


def _swiglu_oai(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.swiglu_oai", structs.SWIGLU_OAI, {"n": task.outputs["gate"].cols}


def _geglu(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.geglu", structs.GEGLU, {"n": task.outputs["gate"].cols}


def _softcap(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.softcap", structs.SOFTCAP, {"n": task.outputs["x"].cols}


def _sigmoid_mul(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "elementwise.sigmoid_mul", structs.SIGMOID_MUL, {"n": task.outputs["x"].cols}


def _add_id(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"k": task.inputs["ids"].cols, "n": task.outputs["x"].cols}
    return "moe.add_id", structs.ADD_ID, special


def _scale_id(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"k": task.inputs["ids"].cols, "n": task.outputs["x"].cols}
    return "moe.scale_id", structs.SCALE_ID, special


def _weigh(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"k": task.inputs["weights"].cols, "n": task.outputs["out"].cols}
    return "moe.weigh", structs.WEIGH, special


def _moe_sum(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"k": task.inputs["place"].cols, "n": task.outputs["out"].cols}
    return "moe.moe_sum", structs.MOE_SUM, special | _absent(task, "weights", "shared", "residual")


def _shexp_gate(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n_in": task.inputs["x"].cols, "n": task.outputs["out"].cols}
    return "moe.shexp_gate", structs.SHEXP_GATE, special


def _l2_norm(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "delta_net.l2_norm", structs.L2_NORM, {"width": task.outputs["x"].cols}


def _ssm_conv(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n": task.inputs["x"].cols, "d_conv": task.tensor("weight").shape[0]}
    return "delta_net.ssm_conv", structs.SSM_CONV, special | _absent(task, "cells")


def _delta_net_gates(task: Task, memory: Memory, n_threads: int) -> Lowered:
    return "delta_net.delta_net_gates", structs.DELTA_NET_GATES, {"n": task.outputs["alpha"].cols}


def _gated_delta_net(task: Task, memory: Memory, n_threads: int) -> Lowered:
    special: dict[str, Value] = {"n": task.outputs["state"].cols, "n_head": task.inputs["beta"].cols}
    return "delta_net.gated_delta_net", structs.GATED_DELTA_NET, special | _absent(task, "cells")


_LOWER: dict[Op, Callable[[Task, Memory, int], Lowered]] = {
    Op.GET_ROWS: _get_rows,
    Op.QUANTIZE: _quantize,
    Op.RMS_NORM: _rms_norm,
    Op.SCALE: _scale,
    Op.MATMUL: _matmul,
    Op.MATMUL_ID: _matmul_id,
    Op.MATMUL_HEADS: _matmul_heads,
    Op.QUANTIZE_HEADS: _quantize_heads,
    Op.CONCAT: _concat,
    Op.PARTS: _parts,
    Op.SCALE_ROWS: _scale_rows,
    Op.ROPE: _rope,
    Op.KV_STORE: _kv_store,
    Op.ATTENTION: _attention,
    Op.MOE_TOPK: _moe_topk,
    Op.EXPERT_ROWS: _expert_rows,
    Op.SWIGLU: _swiglu,
    Op.SWIGLU_OAI: _swiglu_oai,
    Op.GEGLU: _geglu,
    Op.SOFTCAP: _softcap,
    Op.SIGMOID_MUL: _sigmoid_mul,
    Op.ADD_ID: _add_id,
    Op.SCALE_ID: _scale_id,
    Op.WEIGH: _weigh,
    Op.MOE_SUM: _moe_sum,
    Op.SHEXP_GATE: _shexp_gate,
    Op.L2_NORM: _l2_norm,
    Op.SSM_CONV: _ssm_conv,
    Op.DELTA_NET_GATES: _delta_net_gates,
    Op.GATED_DELTA_NET: _gated_delta_net,
}


def _absent(task: Task, *names: str) -> dict[str, Value]:
    """Address 0 for each of the optional arrays that the task does without."""
    there = {*task.inputs, *task.outputs, *task.weights}
    return {name: 0 for name in names if name not in there}


def _tile(qtype: GGMLType) -> str:
    return f"{qtype.name.lower()}.tile"


def _chunk_rows(row_size: int, n_out: int, n_threads: int) -> int:
    """Rows of one chunk: enough to read memory as one stream, and enough chunks to keep all threads busy."""
    wanted = min(CHUNK_BYTES // row_size, n_out // (4 * n_threads))
    return max(1, wanted // ROWS_TOGETHER) * ROWS_TOGETHER
