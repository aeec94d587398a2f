"""What a kernel is given for a task, op by op, where CPU and GPU are given the same.

ALIKE has the ops whose kernels have the same name and the same arguments on both; the functions `*_sizes` are
the part that is the same for the others. gguf_moe_kernels.structs explains each argument at its struct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gguf_moe.graph.task import Buffer, Kind, Op, Task
from gguf_moe.runtime.memory import row_size
from gguf_moe.runtime.program import Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT

Lowered = tuple[str, np.dtype, Mapping[str, Value]]
"""A kernel, the struct of its arguments, and those of them that are not the task's own buffers, weights and
options by the same names."""
Address = Callable[[Buffer], int]
"""Where a buffer lies."""


MATMULS = {Op.MATMUL: structs.MATMUL, Op.MATMUL_HEADS: structs.MATMUL_HEADS}
"""Products with one weight, and the structs of their arguments."""


def absent(task: Task, *names: str) -> dict[str, Value]:
    """Address 0 for each of the optional arrays that the task does without."""
    there = {*task.inputs, *task.outputs, *task.weights}
    return {name: 0 for name in names if name not in there}


def matmul_sizes(task: Task) -> dict[str, int]:
    """The sizes of MATMUL, and of MATMUL_HEADS, whose weight has a matrix for each of n_head heads."""
    weight, x = task.tensor("weight"), task.inputs["x"]
    n_in, n_out, n_head = (*weight.shape, 1)[:3]
    return {
        "row_size": weight.qtype.row_size(n_in),
        "n_out": n_out,
        "n_in": n_in,
        "n_head": n_head,
        # A row of float32 has all heads, a row of int8 is one head.
        "x_stride": row_size(x) // (n_head if x.kind is Kind.F32 else 1),
    }


def matmul_id_sizes(task: Task, address: Address) -> dict[str, Value]:
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


def attention_sizes(task: Task) -> dict[str, Value]:
    """The sizes of ATTENTION's heads."""
    k, v, out = task.inputs["k"], task.inputs["v"], task.outputs["out"]
    return {
        "n_embd_head_k": k.cols // task.options["n_head_kv"],
        "n_embd_head_v": out.cols // task.options["n_head"],
        "v_width": v.cols,
    }


def _quantize(task: Task, address: Address) -> Lowered:
    out = task.outputs["out"]
    return (
        f"activation.quantize_{out.kind.value}",
        structs.QUANTIZE,
        {"n": out.cols, "out_stride": row_size(out)},
    )


def _quantize_heads(task: Task, address: Address) -> Lowered:
    out = task.outputs["out"]
    width = task.inputs["x"].cols // task.options["n_head"]
    return (
        f"activation.quantize_heads_{out.kind.value}",
        structs.QUANTIZE_HEADS,
        {"width": width, "n": out.cols, "out_stride": row_size(out)},
    )


def _rms_norm(task: Task, address: Address) -> Lowered:
    n = task.inputs["x"].cols // task.options["n_head"]
    return "elementwise.rms_norm", structs.RMS_NORM, {"n": n, **absent(task, "weight", "bias")}


def _scale(task: Task, address: Address) -> Lowered:
    n = task.outputs["out"].cols
    return "elementwise.scale", structs.SCALE, {"n": n, **absent(task, "residual")}


def _concat(task: Task, address: Address) -> Lowered:
    n_a, b_width = (task.inputs[name].cols // task.options["n_head"] for name in ("a", "b"))
    return "elementwise.concat", structs.CONCAT, {"n_a": n_a, "b_width": b_width}


def _parts(task: Task, address: Address) -> Lowered:
    x, out = task.inputs["x"], task.outputs["out"]
    return "elementwise.parts", structs.PARTS, {"x_width": x.cols, "out_width": out.cols}


def _scale_rows(task: Task, address: Address) -> Lowered:
    return "elementwise.scale_rows", structs.SCALE_ROWS, {"n": task.outputs["x"].cols}


def _rope(task: Task, address: Address) -> Lowered:
    x = task.outputs["x"]
    n_embd_head, first = x.cols // task.options["n_head"], address(x) + 4 * task.options["first"]
    return "elementwise.rope", structs.ROPE, {"n_embd_head": n_embd_head, "x": first}


def _kv_store(task: Task, address: Address) -> Lowered:
    cache = task.outputs["cache"]
    kernel = f"elementwise.kv_store_{cache.kind.value}"
    return kernel, structs.KV_STORE, {"n": cache.cols, **absent(task, "cells")}


def _gated_unit(task: Task, address: Address) -> Lowered:
    struct = {Op.SWIGLU: structs.SWIGLU, Op.SWIGLU_OAI: structs.SWIGLU_OAI, Op.GEGLU: structs.GEGLU}[task.op]
    return f"elementwise.{task.op}", struct, {"n": task.outputs["gate"].cols}


def _softcap(task: Task, address: Address) -> Lowered:
    return "elementwise.softcap", structs.SOFTCAP, {"n": task.outputs["x"].cols}


def _sigmoid_mul(task: Task, address: Address) -> Lowered:
    return "elementwise.sigmoid_mul", structs.SIGMOID_MUL, {"n": task.outputs["x"].cols}


def _moe_topk(task: Task, address: Address) -> Lowered:
    logits, k = task.outputs["logits"], task.outputs["ids"].cols
    special: dict[str, Value] = {"n_expert": logits.cols, "k": k, "given": 0, "given_stride": 0}
    if "selection" not in task.outputs:
        special["selection"] = address(logits)
    if given := task.inputs.get("given"):
        special["given"] = address(given) + 4 * k * task.options["layer"]
        special["given_stride"] = row_size(given)
    return "moe.moe_topk", structs.MOE_TOPK, special | absent(task, "bias", "group_scores")


def _expert_rows(task: Task, address: Address) -> Lowered:
    n_expert, k = task.outputs["used"].cols, task.inputs["ids"].cols
    return "moe.expert_rows", structs.EXPERT_ROWS, {"n_expert": n_expert, "k": k}


def _by_choice(task: Task, address: Address) -> Lowered:
    struct = structs.ADD_ID if task.op is Op.ADD_ID else structs.SCALE_ID
    return f"moe.{task.op}", struct, {"k": task.inputs["ids"].cols, "n": task.outputs["x"].cols}


def _weigh(task: Task, address: Address) -> Lowered:
    return "moe.weigh", structs.WEIGH, {"k": task.inputs["place"].cols, "n": task.outputs["out"].cols}


def _moe_sum(task: Task, address: Address) -> Lowered:
    sizes = {"k": task.inputs["place"].cols, "n": task.outputs["out"].cols}
    return "moe.moe_sum", structs.MOE_SUM, {**sizes, **absent(task, "weights", "shared", "residual")}


def _shexp_gate(task: Task, address: Address) -> Lowered:
    n_in, n = task.inputs["x"].cols, task.outputs["out"].cols
    return "moe.shexp_gate", structs.SHEXP_GATE, {"n_in": n_in, "n": n}


def _l2_norm(task: Task, address: Address) -> Lowered:
    return "delta_net.l2_norm", structs.L2_NORM, {"width": task.outputs["x"].cols}


def _ssm_conv(task: Task, address: Address) -> Lowered:
    n, d_conv = task.inputs["x"].cols, task.tensor("weight").shape[0]
    return "delta_net.ssm_conv", structs.SSM_CONV, {"n": n, "d_conv": d_conv, **absent(task, "cells")}


def _delta_net_gates(task: Task, address: Address) -> Lowered:
    return "delta_net.delta_net_gates", structs.DELTA_NET_GATES, {"n": task.outputs["alpha"].cols}


def _gated_delta_net(task: Task, address: Address) -> Lowered:
    sizes = {"n": task.outputs["state"].cols, "n_head": task.inputs["beta"].cols}
    return "delta_net.gated_delta_net", structs.GATED_DELTA_NET, {**sizes, **absent(task, "cells")}


ALIKE: dict[Op, Callable[[Task, Address], Lowered]] = {
    Op.QUANTIZE: _quantize,
    Op.QUANTIZE_HEADS: _quantize_heads,
    Op.RMS_NORM: _rms_norm,
    Op.SCALE: _scale,
    Op.CONCAT: _concat,
    Op.PARTS: _parts,
    Op.SCALE_ROWS: _scale_rows,
    Op.ROPE: _rope,
    Op.KV_STORE: _kv_store,
    Op.SWIGLU: _gated_unit,
    Op.SWIGLU_OAI: _gated_unit,
    Op.GEGLU: _gated_unit,
    Op.SOFTCAP: _softcap,
    Op.SIGMOID_MUL: _sigmoid_mul,
    Op.MOE_TOPK: _moe_topk,
    Op.EXPERT_ROWS: _expert_rows,
    Op.ADD_ID: _by_choice,
    Op.SCALE_ID: _by_choice,
    Op.WEIGH: _weigh,
    Op.MOE_SUM: _moe_sum,
    Op.SHEXP_GATE: _shexp_gate,
    Op.L2_NORM: _l2_norm,
    Op.SSM_CONV: _ssm_conv,
    Op.DELTA_NET_GATES: _delta_net_gates,
    Op.GATED_DELTA_NET: _gated_delta_net,
}
