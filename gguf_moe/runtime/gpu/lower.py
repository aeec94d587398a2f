"""From a graph to the GPU's launches and the crew's rows.

In a layer with experts the GPU computes those whose weights it has, and posts the others. The crew computes
them with the same tasks on buffers in main memory. The sum joins both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from gguf_moe.checkpoint import Tensor
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Rows, Task
from gguf_moe.runtime.gpu.delta_net import LOWER as DELTA_NET
from gguf_moe.runtime.gpu.delta_net import check_delta_net
from gguf_moe.runtime.gpu.heads import LOWER as HEADS
from gguf_moe.runtime.gpu.link import bytes_over_link
from gguf_moe.runtime.gpu.mailbox import Mailbox, Post
from gguf_moe.runtime.gpu.meeting import Link, join, post
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.gpu.sections import ExpertSection, expert_sections
from gguf_moe.runtime.lower import Lowered, given_ids, lower_task
from gguf_moe.runtime.memory import Memory, row_size
from gguf_moe.runtime.program import Row, Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.launch import attention_scores_stride, attention_splits

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
        if task.op is Op.KV_STORE and task.outputs["cache"].kind is Kind.Q8_0:
            raise UnsupportedModelError(
                "the GPU has no KV cache of q8_0; use f16 (--kv f16), or --device cpu."
            )


def lower_to_gpu(
    graph: Graph, memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int] = ()
) -> list[Launch]:
    """The kernels of a step, in an order in which one stream can run them.

    linked: for each layer with experts, how many rows of missing down matrices come over the link.
    """
    launches: list[Launch] = []
    last: dict[int, list[int]] = {}
    """What to wait for to wait for a task: launches by the task's id."""
    sections = expert_sections(graph)
    posts = {id(s.rows): (layer, s) for layer, s in enumerate(sections)}
    joins = {id(s.sum): layer for layer, s in enumerate(sections)}
    links = _links(sections, memory, mailbox, linked)
    fetches: dict[int, int] = {}
    for task in graph.tasks:
        if task.name in HOST_OPS:
            continue
        if task.op is Op.MOE_SUM:
            layer = joins[id(task)]
            lowered = [join(task, memory, mailbox, layer, len(sections), links.get(id(sections[layer].down)))]
        elif task.op is Op.EXPERT_ROWS:
            layer, section = posts[id(task)]
            lowered = [*_expert_rows(task, memory), post(section, memory, mailbox, layer)]
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
        if is_chain and (link := links.get(id(posts[id(task)][1].down))):
            # Nothing waits for it but the matmul that needs it.
            fetches[id(link.section.down)] = len(launches)
            launches.append(_launch(task, memory, after, *link.fetch()))
        elif link := links.get(id(task)):
            launches.append(_launch(task, memory, after, *link.receive()))
            last[id(task)].append(len(launches))
            both = (len(launches) - 1, fetches[id(task)])
            launches.append(_launch(task, memory, both, *link.matmul(lowered[0])))
    return launches


def _links(
    sections: Sequence[ExpertSection], memory: DeviceMemory, mailbox: Mailbox, linked: Sequence[int]
) -> dict[int, Link]:
    """The links of a step, by the id of the down matmul."""
    n_rows = {layer: n for layer, n in enumerate(linked) if n}
    downs = [section.down.experts("weight") for section in sections] if n_rows else []
    room = max((bytes_over_link(downs[layer], n) for layer, n in n_rows.items()), default=0)
    return {
        id(sections[layer].down): Link(sections[layer], n, room, memory, mailbox, layer, len(sections))
        for layer, n in n_rows.items()
    }


def lower_alone(task: Task, memory: DeviceMemory) -> list[Launch]:
    """The kernels of one task, in a step in which the GPU has all experts that it needs."""
    return [_launch(task, memory, (), *kernel) for kernel in _LOWER[task.op](task, memory)]


def lower_to_crew(
    graph: Graph, memory: Memory, mailbox: Mailbox, n_threads: int, linked: Sequence[int] = ()
) -> list[Row]:
    """What the crew does in a step: for each layer wait for the post, compute the missing experts, answer.

    In a layer that is linked it answers with their hidden activations, then computes the rows of down that do
    not come over the link.
    """
    rows: list[Row] = []
    for layer, section in enumerate(expert_sections(graph)):
        view = _MissingExperts(memory, mailbox, layer, section)
        n_linked = linked[layer] if linked else 0
        tasks = section.before_down if n_linked else section.tasks
        computed = [lower_task(task, view, n_threads) for task in tasks]  # type: ignore[arg-type]
        if n_linked:
            computed.append(_answer(view.post.hidden, memory))
            if n_linked < section.down.outputs["out"].cols:
                down = lower_task(section.down, view, n_threads)  # type: ignore[arg-type]
                computed += [_rows_from(down, n_linked), _answer(view.post.answer, memory)]
        else:
            computed.append(_answer(view.post.answer, memory))
        wait: dict[str, Value] = {
            "sequence": view.post.sequence,
            "step": memory.number_address,
            "n_used": view.post.n_used,
            "first": view.post.first,
            "n_places": view.rows_address(Rows.PLACES),
            "n_rows": len(computed) + 1,
        }
        rows.append(Row(None, "mailbox.await_post", structs.AWAIT_POST, wait, waits=True))
        rows += computed
    return rows


def _answer(word: int, memory: Memory) -> Row:
    values: dict[str, Value] = {"answer": word, "step": memory.number_address}
    return Row(None, "mailbox.answer", structs.ANSWER, values, all_before=True)


def _rows_from(down: Row, first: int) -> Row:
    """A matmul of experts without the first rows of each; the outputs lie close together."""
    addresses, sizes = (cast("list[int]", down.values[name]) for name in ("weights", "row_sizes"))
    moved = [address + first * size for address, size in zip(addresses, sizes, strict=True)]
    changed: dict[str, Value] = {"weights": moved, "n_out": cast(int, down.values["n_out"]) - first}
    return replace(down, values=down.values | changed)


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
    **HEADS,
}
