"""The launches of gated delta nets and gated attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Op, Task
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.lower import Lowered
from gguf_moe_kernels import structs
from gguf_moe_kernels.cuda.launch import WIDEST_DELTA_NET_HEAD


def check_delta_net(task: Task) -> None:
    """Raise UnsupportedModelError if the heads of a GATED_DELTA_NET are too wide for the kernel."""
    if (n := task.outputs["state"].cols) > WIDEST_DELTA_NET_HEAD:
        raise UnsupportedModelError(
            f"the GPU takes heads of up to {WIDEST_DELTA_NET_HEAD} elements in recurrent layers, but this "
            f"model has heads of {n}; use --device cpu."
        )


def _parts(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    widths = {"x_width": task.inputs["x"].cols, "out_width": task.outputs["out"].cols}
    yield "elementwise.parts", structs.PARTS, {**widths}


def _sigmoid_mul(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    yield "elementwise.sigmoid_mul", structs.SIGMOID_MUL, {"n": task.outputs["x"].cols}


def _l2_norm(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    yield "delta_net.l2_norm", structs.L2_NORM, {"width": task.outputs["x"].cols}


def _ssm_conv(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    sizes = {"n": task.inputs["x"].cols, "d_conv": task.tensor("weight").shape[0]}
    yield "delta_net.ssm_conv", structs.SSM_CONV, {**sizes}


def _delta_net_gates(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    yield "delta_net.delta_net_gates", structs.DELTA_NET_GATES, {"n": task.outputs["alpha"].cols}


def _gated_delta_net(task: Task, memory: DeviceMemory) -> Iterator[Lowered]:
    sizes = {"n": task.outputs["state"].cols, "n_head": task.inputs["beta"].cols}
    yield "delta_net.gated_delta_net", structs.GATED_DELTA_NET, {**sizes}


LOWER: dict[Op, Callable[[Task, DeviceMemory], Iterator[Lowered]]] = {
    Op.PARTS: _parts,
    Op.SIGMOID_MUL: _sigmoid_mul,
    Op.L2_NORM: _l2_norm,
    Op.SSM_CONV: _ssm_conv,
    Op.DELTA_NET_GATES: _delta_net_gates,
    Op.GATED_DELTA_NET: _gated_delta_net,
}
