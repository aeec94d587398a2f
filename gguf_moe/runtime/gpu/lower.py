"""From a graph to the GPU's launches and the crew's rows.

In a layer with experts the GPU computes those whose weights it has, and posts the others. The crew computes
them with the same tasks on buffers in main memory. The sum joins both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Buffer, Graph, Op, Rows, Task
from gguf_moe.runtime.gpu.delta_net import LOWER as DELTA_NET
from gguf_moe.runtime.gpu.delta_net import check_delta_net
from gguf_moe.runtime.gpu.mailbox import Mailbox, Post
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.lower import Lowered, given_ids, lower_task
from gguf_moe.runtime.memory import Memory, row_size
from gguf_moe.runtime.program import Row, Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.cuda.launch import attention_scores_stride, attention_splits

HEARTBEAT_LIMIT_NS = 10_000_000_000
"""How long the GPU waits for an answer while the CPU shows no progress."""
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


@dataclass(frozen=True, slots=True)
class ExpertSection:
    """The tasks of one layer that work on its experts, between the choice and the sum."""

    rows: Task
    """EXPERT_ROWS"""
    tasks: tuple[Task, ...]
    """What is computed for each place, in order."""
    sum: Task
    """MOE_SUM"""
    x_tasks: tuple[Task, ...]
    """What makes the activations that go in."""

    @property
    def x(self) -> list[Buffer]:
        """The activations that go in, in each format."""
        made = {buffer.name for task in self.tasks for buffer in task.outputs.values()}
        found: dict[str, Buffer] = {}
        for task in self.tasks:
            for key, buffer in task.inputs.items():
                if buffer.name not in made and key in {a.value for a in ActivationFormat}:
                    found[buffer.name] = buffer
        return list(found.values())


def expert_sections(graph: Graph) -> list[ExpertSection]:
    """The layers with experts, in order."""
    sections: list[ExpertSection] = []
    rows: Task | None = None
    tasks: list[Task] = []
    for task in graph.tasks:
        if task.op is Op.EXPERT_ROWS:
            rows, tasks = task, []
        elif task.op is Op.MOE_SUM:
            assert rows is not None
            inputs = [t for expert_task in tasks for t in expert_task.after if t not in (rows, *tasks)]
            sections.append(ExpertSection(rows, tuple(tasks), task, tuple(inputs)))
            rows = None
        elif rows is not None and (task.rows is Rows.PLACES or task.op in (Op.ADD_ID, Op.SCALE_ID)):
            tasks.append(task)
    return sections


def check_ops(graph: Graph) -> None:
    """Raise UnsupportedModelError if the GPU does not have an op of the graph, or not for such sizes."""
    if missing := sorted({task.op for task in graph.tasks} - set(_LOWER)):
        raise UnsupportedModelError(
            f"the GPU does not have this model's {missing[0]} operation yet; use --device cpu."
        )
    for task in graph.tasks:
        if task.op is Op.GATED_DELTA_NET:
            check_delta_net(task)


def lower_to_gpu(graph: Graph, memory: DeviceMemory, mailbox: Mailbox) -> list[Launch]:
    """The kernels of a step, in an order in which one stream can run them."""
    launches: list[Launch] = []
    last: dict[int, list[int]] = {}
    """What to wait for to wait for a task: launches by the task's id."""
    sections = expert_sections(graph)
    posts = {id(s.rows): (layer, s) for layer, s in enumerate(sections)}
    joins = {id(s.sum): layer for layer, s in enumerate(sections)}
    for task in graph.tasks:
        if task.name in HOST_OPS:
            continue
        if task.op is Op.MOE_SUM:
            lowered = [_join(task, memory, mailbox, joins[id(task)], len(sections))]
        elif task.op is Op.EXPERT_ROWS:
            layer, section = posts[id(task)]
            lowered = [*_expert_rows(task, memory), _post(section, memory, mailbox, layer)]
        else:
            lowered = list(_LOWER[task.op](task, memory))
        before = [*task.after, *(posts[id(task)][1].x_tasks if id(task) in posts else ())]
        after = tuple(dict.fromkeys(n for t in before for n in last.get(id(t), ())))
        # A post makes the lists that the layer's kernels read; kernels of several types do not depend.
        is_chain = task.op is Op.EXPERT_ROWS
        last[id(task)] = []
        for kernel in lowered:
            launches.append(_launch(task, memory, after, *kernel))
            number = len(launches) - 1
            last[id(task)] = [number] if is_chain else [*last[id(task)], number]
            after = (number,) if is_chain else after
    return launches


def lower_alone(task: Task, memory: DeviceMemory) -> list[Launch]:
    """The kernels of one task, in a step in which the GPU has all experts that it needs."""
    return [_launch(task, memory, (), *kernel) for kernel in _LOWER[task.op](task, memory)]


def ready_words(memory: DeviceMemory, n_layer: int) -> tuple[int, int]:
    """Address and bytes of the joins' `ready` words, one for each layer with experts."""
    nbytes = 8 * max(n_layer, 1)
    return memory.scratch("ready", nbytes), nbytes


def waited_address(memory: DeviceMemory) -> int:
    """Where the joins count for how long they have waited: int64 nanoseconds on the device."""
    return memory.scratch("waited", 8)


def lower_to_crew(graph: Graph, memory: Memory, mailbox: Mailbox, n_threads: int) -> list[Row]:
    """What the crew does in a step: for each layer wait for the post, compute the missing experts, answer."""
    rows: list[Row] = []
    for layer, section in enumerate(expert_sections(graph)):
        view = _MissingExperts(memory, mailbox, layer, section)
        computed = [lower_task(task, view, n_threads) for task in section.tasks]  # type: ignore[arg-type]
        wait: dict[str, Value] = {
            "sequence": view.post.sequence,
            "step": memory.number_address,
            "n_used": view.post.n_used,
            "first": view.post.first,
            "n_places": view.rows_address(Rows.PLACES),
            "n_rows": len(computed) + 2,
        }
        answer: dict[str, Value] = {"answer": view.post.answer, "step": memory.number_address}
        rows.append(Row(None, "mailbox.await_post", structs.AWAIT_POST, wait, waits=True))
        rows += computed
        rows.append(Row(None, "mailbox.answer", structs.ANSWER, answer, all_before=True))
    return rows


class _MissingExperts:
    """A layer's buffers as the crew sees them: what the GPU posted, where answers go, and main memory."""

    def __init__(self, memory: Memory, mailbox: Mailbox, layer: int, section: ExpertSection):
        self.post: Post = mailbox.post(layer)
        self._memory = memory
        self._mailbox = mailbox
        places, ids = section.rows.outputs, section.rows.inputs["ids"]
        self._posted = {
            places["used"].name: self.post.used,
            places["n_used"].name: self.post.n_used,
            places["first"].name: self.post.first,
            places["token"].name: self.post.x_index,
            places["place"].name: self.post.place,
            ids.name: self.post.all_ids,
        }

    def address(self, buffer: Buffer) -> int:
        if (address := self._posted.get(buffer.name)) is not None:
            return address
        if (address := self._mailbox.address(buffer)) is not None:
            return address
        return self._memory.address(buffer)

    @property
    def n_past_address(self) -> int:
        return self._memory.n_past_address

    def rows_address(self, rows: Rows) -> int:
        return self._memory.rows_address(rows)


def _launch(
    task: Task,
    memory: DeviceMemory,
    after: tuple[int, ...],
    kernel: str,
    struct: np.dtype,
    special: dict[str, Value],
) -> Launch:
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
    n_in, n_out = weight.shape
    x = [task.inputs[ACTIVATION_FORMAT[qtype].value] for qtype in weight.qtypes]
    special: dict[str, Value] = {
        "tiles": [int(qtype) for qtype in weight.qtypes],
        "weights": memory.weights.table(weight),
        "row_sizes": [qtype.row_size(n_in) for qtype in weight.qtypes],
        "n_expert": len(weight.qtypes),
        "n_out": n_out,
        "n_in": n_in,
        "x": [memory.address(buffer) for buffer in x],
        "x_stride": [row_size(buffer) for buffer in x],
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
    special: dict[str, Value] = {"k": task.inputs["weights"].cols, "n": task.outputs["out"].cols}
    yield "moe.moe_sum", structs.MOE_SUM, special


def _gated_unit(task: Task, memory: DeviceMemory) -> GpuLowered:
    struct = {Op.SWIGLU: structs.SWIGLU, Op.SWIGLU_OAI: structs.SWIGLU_OAI, Op.GEGLU: structs.GEGLU}[task.op]
    yield f"elementwise.{task.op}", struct, {"n": task.outputs["gate"].cols}


def _softcap(task: Task, memory: DeviceMemory) -> GpuLowered:
    yield "elementwise.softcap", structs.SOFTCAP, {"n": task.outputs["x"].cols}


def _by_choice(task: Task, memory: DeviceMemory) -> GpuLowered:
    struct = structs.ADD_ID if task.op is Op.ADD_ID else structs.SCALE_ID
    yield f"moe.{task.op}", struct, {"k": task.inputs["ids"].cols, "n": task.outputs["x"].cols}


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
    Op.SHEXP_GATE: _shexp_gate,
    **DELTA_NET,
}


def _post(section: ExpertSection, memory: DeviceMemory, mailbox: Mailbox, layer: int) -> Lowered:
    post, ids, x = mailbox.post(layer), section.rows.inputs["ids"], section.x
    if len(x) > 2:
        raise UnsupportedModelError(
            f"layer {layer} has experts of types that need {len(x)} formats of activations, but the GPU can "
            "post two; use --device cpu."
        )
    gate = next(task for task in section.tasks if task.op is Op.MATMUL_ID).experts("weight")
    special: dict[str, Value] = {
        "weights": memory.weights.table(gate),
        "k": ids.cols,
        "used": post.used,
        "n_used": post.n_used,
        "first": post.first,
        "x_index": post.x_index,
        "place": post.place,
        "all_ids": post.all_ids,
        "missing_place": memory.scratch("missing_place", 4 * ids.rows * ids.cols),
        "n_missing": memory.scratch("n_missing", 8),
        "aborted": memory.word("aborted"),
        "step": memory.word("step"),
        "sequence": post.sequence,
    }
    for prefix, buffer in zip(("x", "x_2"), x, strict=False):
        special |= {
            prefix: memory.address(buffer),
            f"{prefix}_out": mailbox.address(buffer) or 0,
            f"{prefix}_size": row_size(buffer),
        }
    return "mailbox.mailbox_post", structs.MAILBOX_POST, special


def _join(task: Task, memory: DeviceMemory, mailbox: Mailbox, layer: int, n_layer: int) -> Lowered:
    post, weights = mailbox.post(layer), task.inputs["weights"]
    special: dict[str, Value] = {
        "k": weights.cols,
        "n": task.outputs["out"].cols,
        "x_missing": mailbox.address(task.inputs["x"]) or 0,
        "missing_place": memory.scratch("missing_place", 4 * weights.rows * weights.cols),
        "n_missing": memory.scratch("n_missing", 8),
        "aborted": memory.word("aborted"),
        "step": memory.word("step"),
        "answer": post.answer,
        "abort": mailbox.abort_address,
        "heartbeat": mailbox.heartbeat_address,
        "limit": HEARTBEAT_LIMIT_NS,
        "ready": ready_words(memory, n_layer)[0] + 8 * layer,
        "waited": waited_address(memory),
    }
    return "mailbox.moe_join", structs.MOE_JOIN, special
