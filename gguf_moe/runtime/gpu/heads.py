"""The launches of what works on heads apart, as latent attention does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gguf_moe.graph.task import Kind, Op, Task
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.lower import Lowered
from gguf_moe.runtime.memory import row_size
from gguf_moe_kernels import structs


def _matmul_heads(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    weight, x = task.tensor("weight"), task.inputs["x"]
    n_in, n_out, n_head = weight.shape
    sizes = {
        "row_size": weight.qtype.row_size(n_in),
        "n_out": n_out,
        "n_in": n_in,
        "n_head": n_head,
        "x_stride": row_size(x) // (n_head if x.kind is Kind.F32 else 1),
    }
    yield f"matmul.matmul_heads_{weight.qtype.name.lower()}", structs.MATMUL_HEADS, {**sizes}


def _quantize_heads(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    out, n_head = task.outputs["out"], task.options["n_head"]
    sizes = {"width": task.inputs["x"].cols // n_head, "n": out.cols, "out_stride": row_size(out)}
    yield f"activation.quantize_heads_{out.kind.value}", structs.QUANTIZE_HEADS, {**sizes}


def _concat(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    n_a, b_width = (task.inputs[name].cols // task.options["n_head"] for name in ("a", "b"))
    yield "elementwise.concat", structs.CONCAT, {"n_a": n_a, "b_width": b_width}


def _scale_rows(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    yield "elementwise.scale_rows", structs.SCALE_ROWS, {"n": task.outputs["x"].cols}


LOWER: dict[Op, Callable[[Task, DeviceMemory], Iterator[Lowered]]] = {
    Op.MATMUL_HEADS: _matmul_heads,
    Op.QUANTIZE_HEADS: _quantize_heads,
    Op.CONCAT: _concat,
    Op.SCALE_ROWS: _scale_rows,
}
