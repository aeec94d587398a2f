"""The oracle: a graph run task by task in the caller's thread, with numpy. Tests compare the crew with it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import ExpertTensors, Tensor
from gguf_moe.experts.routing import Replay
from gguf_moe.graph.task import Graph, Kind, Op, Task
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.cpu import CpuRunner
from gguf_moe.runtime.crew import Crew
from gguf_moe.runtime.memory import Memory
from gguf_moe.runtime.program import Program
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, delta_net, kv_cache, matmul, ops

OnTask = Callable[[Task], None]
"""Called after each task; its outputs are in the memory then."""


class InlineContext(Context):
    """A context that needs neither kernels nor threads; `start` is not called."""

    def __init__(
        self,
        arch: Arch,
        hparams: HParams,
        weights: Weights,
        *,
        n_ctx: int,
        n_batch: int,
        kv_kind: Kind,
        replay: Replay | None = None,
        n_seq_max: int = 1,
        on_task: OnTask | None = None,
    ):
        super().__init__(
            arch,
            hparams,
            weights,
            n_ctx=n_ctx,
            n_batch=n_batch,
            kv_kind=kv_kind,
            replay=replay,
            n_seq_max=n_seq_max,
        )
        for buffer in self.graph.buffers().values():
            self._memory.address(buffer)
        # To the runner, the graph is the program.
        crew, program = cast(Crew, InlineCrew(self._memory, on_task)), cast(Program, self.graph)
        self._run_on(CpuRunner(self._memory, program, crew, self._expert_layers, hparams.n_expert_used))

    def buffer(self, name: str) -> np.ndarray:
        """A buffer's array, as the last task has left it."""
        return self._memory[name]


class InlineCrew:
    """Runs graphs on the buffers of one memory, which must have been made."""

    def __init__(self, memory: Memory, on_task: OnTask | None = None):
        self._memory = memory
        self._on_task = on_task

    def run(self, graph: Graph) -> None:
        """Run one step: the tasks in their order, on as many rows as memory.set_step has said."""
        for task in graph.tasks:
            _RUN.get(task.op, _run_op)(task, _Arrays(task, self._memory))
            if self._on_task:
                self._on_task(task)

    def close(self) -> None:
        """There are no threads to join."""


class _Arrays:
    """The arrays of a task: its buffers, cut to the step's rows, and its weights."""

    def __init__(self, task: Task, memory: Memory):
        self._task = task
        self._memory = memory
        self.n_past = _read(memory.n_past_address)

    def __getitem__(self, name: str) -> np.ndarray:
        """An input or output of the task. What isn't by row (KV cache, places) comes whole."""
        buffer = self._task.inputs.get(name) or self._task.outputs[name]
        return self._memory[buffer.name]

    def get(self, name: str) -> np.ndarray | None:
        """An input that the task may do without."""
        return self[name] if name in self._task.inputs else None

    def rows(self, name: str) -> np.ndarray:
        """The rows of an input or output that this step uses."""
        return self[name][: _read(self._memory.rows_address(self._task.rows))]

    def flat(self, name: str) -> np.ndarray:
        """An input or output of one column or one row."""
        return self[name].reshape(-1)


def _run_op(task: Task, arrays: _Arrays) -> None:
    """An op whose buffers all have the task's rows, and whose weights are vectors."""
    values: dict[str, Any] = {name: arrays.rows(name) for name in (*task.inputs, *task.outputs)}
    values |= {name: task.tensor(name).data.view(np.float32) for name in task.weights}
    ref = ops if hasattr(ops, task.op) else delta_net
    getattr(ref, task.op)(**values, **task.options)


def _recurrence(task: Task, arrays: _Arrays) -> None:
    """An op that takes the tokens one by one and leaves states for the next step."""
    values: dict[str, Any] = {name: arrays.rows(name) for name in (*task.inputs, *task.outputs)}
    values |= {"state": arrays["state"], "n_past": arrays.n_past, **task.options}
    for name in task.weights:
        tensor = task.tensor(name)
        values[name] = tensor.data.view(np.float32).reshape(tensor.shape[::-1])
    getattr(delta_net, task.op)(**values)


def _get_rows(task: Task, arrays: _Arrays) -> None:
    out, tokens = arrays.rows("out"), arrays.rows("tokens")[:, 0]
    if "weight" in task.weights:
        tensor = task.tensor("weight")
        ops.get_rows(tensor.qtype, _matrix(tensor), tokens, out)
    else:
        ops.get_rows(GGMLType.F32, arrays["weight"].view(np.uint8), tokens, out)


def _quantize(task: Task, arrays: _Arrays) -> None:
    kind = task.outputs["out"].kind
    assert isinstance(kind, ActivationFormat)
    arrays.rows("out")[:] = activations.quantize(kind, arrays.rows("x"))


def _matmul(task: Task, arrays: _Arrays) -> None:
    tensor = task.tensor("weight")
    matmul.matmul(
        tensor.qtype,
        _matrix(tensor),
        arrays.rows("x"),
        arrays.rows("out"),
        bias=task.tensor("bias").data.view(np.float32) if "bias" in task.weights else None,
        residual=arrays.rows("residual") if "residual" in task.inputs else None,
    )


def _matmul_id(task: Task, arrays: _Arrays) -> None:
    experts = task.experts("weight")
    matmul.matmul_id(
        experts.qtypes,
        [_expert_matrix(experts, ie) for ie in range(len(experts.qtypes))],
        {kind: arrays[kind.value] for kind in ActivationFormat if kind.value in task.inputs},
        arrays["out"],
        arrays.flat("used"),
        int(arrays.flat("n_used")[0]),
        arrays.flat("first"),
        arrays.flat("x_index") if "x_index" in task.inputs else None,
    )


def _matmul_heads(task: Task, arrays: _Arrays) -> None:
    weight, x, out = task.tensor("weight"), arrays["x"], arrays.rows("out")
    n_in, n_out, n_head = weight.shape
    heads = x.reshape(-1, n_head, x.size // (len(arrays["out"]) * n_head))[: len(out)]
    if x.dtype == np.float32:
        heads = heads[..., :n_in]
    matrices = weight.data.reshape(n_head, n_out, -1)
    matmul.matmul_heads(weight.qtype, matrices, heads, out.reshape(-1, n_head, n_out))


def _quantize_heads(task: Task, arrays: _Arrays) -> None:
    out, x = task.outputs["out"], arrays.rows("x")
    assert isinstance(out.kind, ActivationFormat)
    heads = x.reshape(len(x) * task.options["n_head"], -1)[:, : out.cols]
    arrays["out"][: len(heads)] = activations.quantize(out.kind, heads)


def _kv_store(task: Task, arrays: _Arrays) -> None:
    kv_cache.kv_store(arrays.rows("x"), arrays["cache"], arrays.n_past, arrays.get("cells"))


def _attention(task: Task, arrays: _Arrays) -> None:
    q, out = arrays.rows("q"), arrays.rows("out")
    sinks = {name: task.tensor(name).data.view(np.float32) for name in task.weights}
    k, v, cells = arrays["k"], arrays["v"], arrays.get("cells")
    kv_cache.attention(q, k, v, out, arrays.n_past, **task.options, **sinks, cells=cells)


def _expert_rows(task: Task, arrays: _Arrays) -> None:
    by_row = {name: arrays.rows(name) for name in ("ids", "place")}
    flat = {name: arrays.flat(name) for name in ("used", "n_used", "first", "counts", "token")}
    ops.expert_rows(**by_row, **flat)


def _moe_topk(task: Task, arrays: _Arrays) -> None:
    options, k = dict(task.options), task.outputs["ids"].cols
    first = k * options.pop("layer")
    by_row = {name: arrays.rows(name) for name in (*task.inputs, *task.outputs)}
    if "given" in by_row:
        by_row["given"] = by_row["given"][:, first : first + k]
    bias = {name: task.tensor(name).data.view(np.float32) for name in task.weights}
    ops.moe_topk(**by_row, **bias, **options)


def _add_id(task: Task, arrays: _Arrays) -> None:
    bias = task.tensor("bias")
    values = bias.data.view(np.float32).reshape(bias.n_rows, -1)
    ops.add_id(arrays["x"], values, arrays.rows("ids"), arrays.rows("place"))


def _scale_id(task: Task, arrays: _Arrays) -> None:
    scale = task.tensor("scale").data.view(np.float32)
    ops.scale_id(arrays["x"], scale, arrays.rows("ids"), arrays.rows("place"))


def _weigh(task: Task, arrays: _Arrays) -> None:
    ops.weigh(**{name: arrays.rows(name) for name in task.inputs}, out=arrays["out"])


def _moe_sum(task: Task, arrays: _Arrays) -> None:
    by_row = {name: arrays.rows(name) for name in (*task.inputs, *task.outputs) if name != "x"}
    ops.moe_sum(arrays["x"], **{"weights": None} | by_row)


_RUN: dict[Op, Callable[[Task, _Arrays], None]] = {
    Op.GET_ROWS: _get_rows,
    Op.QUANTIZE: _quantize,
    Op.MATMUL: _matmul,
    Op.MATMUL_ID: _matmul_id,
    Op.MATMUL_HEADS: _matmul_heads,
    Op.QUANTIZE_HEADS: _quantize_heads,
    Op.KV_STORE: _kv_store,
    Op.ATTENTION: _attention,
    Op.MOE_TOPK: _moe_topk,
    Op.EXPERT_ROWS: _expert_rows,
    Op.ADD_ID: _add_id,
    Op.SCALE_ID: _scale_id,
    Op.WEIGH: _weigh,
    Op.MOE_SUM: _moe_sum,
    Op.SSM_CONV: _recurrence,
    Op.GATED_DELTA_NET: _recurrence,
}


def _matrix(tensor: Tensor) -> np.ndarray:
    """u8 [n_rows, row_size]."""
    return tensor.data.reshape(tensor.n_rows, -1)


def _expert_matrix(experts: ExpertTensors, ie: int) -> np.ndarray:
    """u8 [n_out, row_size] of expert ie, where it lies."""
    raw = (ctypes.c_uint8 * experts.nbytes[ie]).from_address(experts.addresses[ie])
    return np.frombuffer(memoryview(raw), np.uint8).reshape(experts.shape[1], -1)


def _read(address: int) -> int:
    """An int64 that is set for each step, read as the kernels read it."""
    return ctypes.c_int64.from_address(address).value
