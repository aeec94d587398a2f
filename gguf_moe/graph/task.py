"""The task graph: what a model computes in one step, independent of where and in which order it runs."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf_moe.checkpoint import ExpertTensors, Tensor
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.quants import GGMLType


class Op(enum.StrEnum):
    """What a task computes. gguf_moe_kernels.ref defines each op; structs.py says the same in one line."""

    GET_ROWS = "get_rows"
    RMS_NORM = "rms_norm"
    SCALE = "scale"
    QUANTIZE = "quantize"
    MATMUL = "matmul"
    MATMUL_ID = "matmul_id"
    MATMUL_HEADS = "matmul_heads"
    QUANTIZE_HEADS = "quantize_heads"
    CONCAT = "concat"
    PARTS = "parts"
    SCALE_ROWS = "scale_rows"
    ROPE = "rope"
    KV_STORE = "kv_store"
    ATTENTION = "attention"
    MOE_TOPK = "moe_topk"
    EXPERT_ROWS = "expert_rows"
    SWIGLU = "swiglu"
    SWIGLU_OAI = "swiglu_oai"
    GEGLU = "geglu"
    SOFTCAP = "softcap"
    SIGMOID_MUL = "sigmoid_mul"
    ADD_ID = "add_id"
    SCALE_ID = "scale_id"
    WEIGH = "weigh"
    MOE_SUM = "moe_sum"
    SHEXP_GATE = "shexp_gate"
    L2_NORM = "l2_norm"
    SSM_CONV = "ssm_conv"
    DELTA_NET_GATES = "delta_net_gates"
    GATED_DELTA_NET = "gated_delta_net"


class Rows(enum.StrEnum):
    """How many rows a task has in a step; the numbers are set before each step."""

    TOKENS = "n_tokens"
    OUTPUTS = "n_outputs"
    """Tokens whose logits are wanted: the last ones of the step."""
    PLACES = "n_places"
    """Tokens times experts used."""


class Kind(enum.Enum):
    """The elements of a buffer, but for activations in int8."""

    F32 = "f32"
    F16 = "f16"
    I32 = "i32"
    I64 = "i64"
    Q8_0 = "q8_0"
    """Blocks of 32, like those of a file; in the KV cache."""

    def row_size(self, n: int) -> int:
        """Bytes of n elements; n is a multiple of 32 for Q8_0."""
        return GGMLType[self.name].row_size(n)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that tasks read and write: `rows` rows of `cols` elements. Layers share the same buffers."""

    name: str
    kind: Kind | ActivationFormat
    rows: int
    cols: int


@dataclass(eq=False, slots=True)
class Task:
    """One op on buffers and weights. `name` is llama.cpp's name for what it produces, with the layer."""

    name: str
    op: Op
    rows: Rows
    inputs: Mapping[str, Buffer]
    outputs: Mapping[str, Buffer]
    weights: Mapping[str, Tensor | ExpertTensors]
    options: Mapping[str, Any]
    after: tuple[Task, ...] = ()
    """Tasks that must be finished before this one starts."""

    def tensor(self, name: str) -> Tensor:
        """A weight that is one tensor."""
        weight = self.weights[name]
        assert isinstance(weight, Tensor)
        return weight

    def experts(self, name: str) -> ExpertTensors:
        """A weight of which each expert has its own."""
        weight = self.weights[name]
        assert isinstance(weight, ExpertTensors)
        return weight


@dataclass(slots=True)
class Graph:
    """Tasks in an order in which they can run one by one."""

    tasks: list[Task] = field(default_factory=list)
    _writer: dict[str, Task] = field(default_factory=dict)
    _readers: dict[str, list[Task]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        op: Op,
        rows: Rows,
        *,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        weights: Mapping[str, Tensor | ExpertTensors] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Task:
        """Append a task. It waits for whoever wrote what it reads and for all users of what it writes."""
        before: dict[int, Task] = {}
        for buffer in (*inputs.values(), *outputs.values()):
            if writer := self._writer.get(buffer.name):
                before[id(writer)] = writer
        for buffer in outputs.values():
            before.update((id(reader), reader) for reader in self._readers.get(buffer.name, ()))
        task = Task(name, op, rows, inputs, outputs, weights or {}, options or {}, tuple(before.values()))
        for buffer in inputs.values():
            self._readers.setdefault(buffer.name, []).append(task)
        for buffer in outputs.values():
            self._writer[buffer.name] = task
            self._readers[buffer.name] = []
        self.tasks.append(task)
        return task

    def buffers(self) -> dict[str, Buffer]:
        """Every buffer that a task uses, by name."""
        found = {}
        for task in self.tasks:
            for buffer in (*task.inputs.values(), *task.outputs.values()):
                found[buffer.name] = buffer
        return found
