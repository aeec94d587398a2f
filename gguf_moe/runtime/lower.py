"""From a graph to the rows of the crew's program: for each task a kernel and its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

from gguf_moe.checkpoint import Tensor
from gguf_moe.graph.task import Buffer, Graph, Kind, Op, Task
from gguf_moe.runtime.memory import Addresses, row_size
from gguf_moe.runtime.ops import (
    ALIKE,
    MATMULS,
    Lowered,
    absent,
    attention_sizes,
    matmul_id_sizes,
    matmul_sizes,
)
from gguf_moe.runtime.program import Row, Value
from gguf_moe_kernels import structs
from gguf_moe_kernels.quants import GGMLType

CHUNK_BYTES = 1 << 18
"""Weights in one chunk of a matmul: kernels ask for memory ahead of time, and a chunk's end loses that."""
ROWS_TOGETHER = 32
"""Rows of a weight that the kernels take side by side, for several tokens."""
STREAMS = 4
"""The same for one token."""
PAGE = 4096
LEAST_BYTES = 1 << 16
"""Of one token's weights threads take about so many bytes at a time in the end (cpu/matmul.py)."""


def lower(graph: Graph, memory: Addresses, n_threads: int) -> list[Row]:
    """The rows of the program, in the graph's order."""
    return [lower_task(task, memory, n_threads) for task in graph.tasks]


def lower_task(task: Task, memory: Addresses, n_threads: int) -> Row:
    """The row of one task."""
    if alike := ALIKE.get(task.op):
        kernel, struct, special = alike(task, memory.address)
    else:
        kernel, struct, special = _LOWER[task.op](task, memory, n_threads)
    values = {**_addresses_and_options(task, memory), **special}
    return Row(task, kernel, struct, {name: values[name] for name in struct.names or ()})


def _addresses_and_options(task: Task, memory: Addresses) -> dict[str, Value]:
    """What needs no thought: arguments named like the task's own buffers, weights and options."""
    return {
        "n_past": memory.n_past_address,
        "rows": memory.rows_address(task.rows),
        **{name: memory.address(buffer) for name, buffer in (*task.inputs.items(), *task.outputs.items())},
        **{name: weight.address for name, weight in task.weights.items() if isinstance(weight, Tensor)},
        **task.options,
    }


def _get_rows(task: Task, memory: Addresses, n_threads: int) -> Lowered:
    n = task.outputs["out"].cols
    qtype = task.tensor("weight").qtype if "weight" in task.weights else GGMLType.F32
    dequantize = f"{qtype.name.lower()}.dequantize"
    sizes: dict[str, Value] = {"dequantize": dequantize, "row_size": qtype.row_size(n), "n": n}
    return "elementwise.get_rows", structs.GET_ROWS, sizes


def _matmul(task: Task, memory: Addresses, n_threads: int) -> Lowered:
    sizes = matmul_sizes(task)
    special: dict[str, Value] = {
        "tile": _tile(task.tensor("weight").qtype),
        **sizes,
        **_chunks(sizes["row_size"], sizes["n_out"] * sizes["n_head"], n_threads),
    }
    return f"matmul.{task.op}", MATMULS[task.op], special | absent(task, "bias", "residual")


def _matmul_id(task: Task, memory: Addresses, n_threads: int) -> Lowered:
    weight = task.experts("weight")
    n_in, n_out = weight.shape
    special: dict[str, Value] = {
        "tiles": [_tile(qtype) for qtype in weight.qtypes],
        "weights": list(weight.addresses),
        **matmul_id_sizes(task, memory.address),
        **_chunks(max(qtype.row_size(n_in) for qtype in weight.qtypes), n_out, n_threads),
    }
    return "matmul.matmul_id", structs.MATMUL_ID, special | absent(task, "x_index")


def _attention(task: Task, memory: Addresses, n_threads: int) -> Lowered:
    k = task.inputs["k"]
    group = task.options["n_head"] // task.options["n_head_kv"]
    at_once = max(n for n in structs.HEADS_AT_ONCE if group % n == 0)
    scores = Buffer(f"attention_scores_{at_once}", Kind.F32, n_threads * at_once, k.rows)
    special: dict[str, Value] = {
        **attention_sizes(task),
        "scores": memory.address(scores),
        "scores_stride": row_size(scores),
        **absent(task, "sinks", "cells"),
    }
    return f"attention.attention_{k.kind.value}_{at_once}", structs.ATTENTION, special


_LOWER: dict[Op, Callable[[Task, Addresses, int], Lowered]] = {
    Op.GET_ROWS: _get_rows,
    Op.MATMUL: _matmul,
    Op.MATMUL_ID: _matmul_id,
    Op.MATMUL_HEADS: _matmul,
    Op.ATTENTION: _attention,
}


def _tile(qtype: GGMLType) -> str:
    return f"{qtype.name.lower()}.tile"


def _chunks(row_size: int, n_out: int, n_threads: int) -> dict[str, Value]:
    """How a matmul is cut."""
    return {
        "chunk_rows": _chunk_rows(row_size, n_out, n_threads),
        "one_token_rows": _one_token_rows(row_size),
        "least_rows": _least_rows(row_size, n_out, n_threads),
        "n_threads": n_threads,
    }


def _chunk_rows(row_size: int, n_out: int, n_threads: int) -> int:
    """Rows of one chunk: enough to read memory as one stream, and enough chunks to keep all threads busy."""
    wanted = min(CHUNK_BYTES // row_size, n_out // (4 * n_threads))
    return max(1, wanted // ROWS_TOGETHER) * ROWS_TOGETHER


@functools.cache
def _one_token_rows(row_size: int) -> int:
    """Rows of one call for one token, of at most CHUNK_BYTES: the number for which the streams, which are a
    quarter of it apart, come to the ends of their pages at times that differ most."""
    most = max(1, CHUNK_BYTES // row_size // STREAMS)

    def apart(quarter: int) -> int:
        places = sorted(i * quarter * row_size % PAGE for i in range(STREAMS))
        return min(b - a for a, b in pairwise([*places, places[0] + PAGE]))

    return STREAMS * max(range(-(-most // 2), most + 1), key=lambda quarter: (apart(quarter), quarter))


def _least_rows(row_size: int, n_out: int, n_threads: int) -> int:
    """Rows that a thread takes at least for one token: an equal share, or a part of it of about LEAST_BYTES.

    One thread has nobody to wait for, and takes all.
    """
    share = -(-n_out // n_threads)
    parts = max(1, share * row_size // LEAST_BYTES) if n_threads > 1 else 1
    return -(-share // (parts * STREAMS)) * STREAMS
