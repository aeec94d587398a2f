"""The size of each kernel's launch, from its arguments and the largest number of rows it may meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_moe_kernels.cuda.source import split_name
from gguf_moe_kernels.cuda.warp_rows import warp_rows, warp_rows_by_expert

Size = tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """How many blocks of how many threads, and the bytes of shared memory that a block asks for."""

    grid: Size
    block: Size
    shared: int = 0


_Rule = Callable[[Any, int], Launch]
_RULES: dict[str, _Rule] = {}


def rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Decorator: the function (arguments, rows) -> Launch is for these kernels ("file.function").

    A name that ends in "_*" stands for all weight types.
    """

    def add(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return add


def launch_of(name: str, arguments: np.ndarray, rows: int) -> Launch:
    """The launch of a kernel whose argument struct is `arguments` (0-d), for at most `rows` rows.

    Only sizes are read from the struct, never addresses.
    """
    _, _, qtype = split_name(name)
    key = name.removesuffix(qtype) + "*" if qtype else name
    return _RULES[key](_Numbers(arguments, qtype), max(rows, 1))


class _Numbers:
    """The fields of a 0-d structured array as Python's numbers, and a warp's rows of a weight."""

    def __init__(self, arguments: np.ndarray, qtype: str | None):
        self._arguments = arguments
        self._qtype = qtype
        self.warp_rows = warp_rows(qtype or "")
        self.warp_rows_by_expert = warp_rows_by_expert(qtype or "")

    def __getattr__(self, field: str) -> Any:
        value = self._arguments[field]
        return _Numbers(value, self._qtype) if value.dtype.names else value.item()


def blocks(n: int, size: int) -> int:
    """How many parts of `size` hold n."""
    return max(-(-n // size), 1)


SHORT = 512
"""The number of norm.cuh: elements of a head that a warp takes by itself."""


@rule("elementwise.rms_norm")
def _rms_norm(a: Any, rows: int) -> Launch:
    heads = rows * a.n_head
    return Launch((blocks(heads, 8) if a.n <= SHORT else heads,), (256,))


@rule(
    "elementwise.scale",
    "elementwise.scale_rows",
    "elementwise.kv_store_f16",
    "elementwise.kv_store_f32",
    "elementwise.kv_store_q8_0",
    "elementwise.swiglu",
    "elementwise.swiglu_oai",
    "elementwise.geglu",
    "elementwise.softcap",
    "elementwise.sigmoid_mul",
    "delta_net.delta_net_gates",
    "moe.moe_sum",
    "mailbox.moe_join",
)
def _by_element(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 256)), (256,))


@rule("get_rows.get_rows_*")
def _get_rows(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 256)), (256,))


@rule("elementwise.concat")
def _concat(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * (a.n_a + a.n_b), 256)), (256,))


@rule("elementwise.parts")
def _parts(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * a.n, 256)), (256,))


@rule("delta_net.l2_norm")
def _l2_norm(a: Any, rows: int) -> Launch:
    return Launch((blocks(rows * a.n_head, 8),), (256,))


@rule("delta_net.ssm_conv")
def _ssm_conv(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n, 256),), (256,))


WIDEST_DELTA_NET_HEAD = 256 + 31
"""The most elements of a head that delta_net.cu holds in registers: MOST_LANES of 32, and some more."""


@rule("delta_net.gated_delta_net")
def _gated_delta_net(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n_head * a.n, 8),), (256,))


@rule("elementwise.rope")
def _rope(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n_head * a.n_rot // 2, 256)), (256,))


@rule("activation.quantize_q8_0", "activation.quantize_q8_1")
def _quantize_32(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 4 * 32)), (128,))


@rule("activation.quantize_q8_k")
def _quantize_256(a: Any, rows: int) -> Launch:
    return Launch((rows, blocks(a.n, 4 * 256)), (128,))


@rule("activation.quantize_heads_q8_0", "activation.quantize_heads_q8_1")
def _quantize_heads_32(a: Any, rows: int) -> Launch:
    return Launch((rows * a.n_head, blocks(a.n, 4 * 32)), (128,))


@rule("activation.quantize_heads_q8_k")
def _quantize_heads_256(a: Any, rows: int) -> Launch:
    return Launch((rows * a.n_head, blocks(a.n, 4 * 256)), (128,))


@rule("fused.norm_quantize")
def _norm_quantize(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,), 8 * a.n)


MOST_CHOICES = 64
"""The number of meeting.cuh: experts of a token in fused.join_norm_quantize."""


@rule("fused.join_norm_quantize")
def _join_norm_quantize(a: Any, rows: int) -> Launch:
    return _norm_quantize(a.norm, rows)


@rule("fused.rope_store_f16", "fused.rope_store_f32", "fused.rope_store_q8_0")
def _rope_store(a: Any, rows: int) -> Launch:
    heads = a.n_head + a.n_head_kv + blocks(a.n_v, a.n_embd_head)
    return Launch((rows, blocks(heads, 8)), (256,))


@rule("moe.moe_topk")
def _moe_topk(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,), 4 * (2 * a.n_expert + a.n_group + 2 * a.k))


@rule("fused.choose_and_post")
def _choose_and_post(a: Any, rows: int) -> Launch:
    return _moe_topk(a.topk, 1)


@rule("moe.expert_rows", "mailbox.mailbox_post")
def _one_block(a: Any, rows: int) -> Launch:
    return Launch((1,), (256,))


@rule("link.fetch_missing")
def _fetch_missing(a: Any, rows: int) -> Launch:
    return Launch((64,), (256,))


@rule("link.receive")
def _receive(a: Any, rows: int) -> Launch:
    return Launch((rows * a.k, blocks(a.x_size // 4, 256)), (256,))


@rule("moe.add_id", "moe.scale_id")
def _by_choice(a: Any, rows: int) -> Launch:
    return Launch((rows * a.k, blocks(a.n, 256)), (256,))


@rule("moe.shexp_gate")
def _shexp_gate(a: Any, rows: int) -> Launch:
    return Launch((rows,), (256,))


SPLIT, HEADS, FEW_HEADS, COLUMNS = 128, 8, 2, 1024
"""The numbers of attention_split.cuh: positions of a split, heads of a block, columns of its sums."""


def attention_splits(n_ctx: int, n_swa: int) -> int:
    """How many splits of the cache a token can see at most; a window may begin and end within one."""
    n_splits = blocks(n_ctx, SPLIT)
    return min(n_splits, blocks(n_swa, SPLIT) + 1) if n_swa else n_splits


def attention_scores_stride(n_embd_head_v: int, n_splits: int) -> int:
    """ATTENTION.scores_stride: bytes of each row and head in `scores`, zeros before the first launch.

    0 for n_splits 1, which needs none: then a block walks over all splits, as is right for many tokens.
    """
    return 4 * (1 + n_splits * (n_embd_head_v + 2)) if n_splits > 1 else 0


def _attention_of(a: Any, rows: int, n_heads: int) -> Launch:
    n_splits = max(a.scores_stride // 4 - 1, 0) // (a.n_embd_head_v + 2) or 1
    grid = (rows, a.n_head_kv * blocks(a.n_head // a.n_head_kv, n_heads), n_splits)
    return Launch(grid, (256,), 4 * n_heads * (a.n_embd_head_k + SPLIT + COLUMNS + 4))


@rule("attention.attention_f16", "attention.attention_f32", "attention.attention_q8_0")
def _attention(a: Any, rows: int) -> Launch:
    return _attention_of(a, rows, HEADS)


@rule("attention.attention_few_f16", "attention.attention_few_f32", "attention.attention_few_q8_0")
def _attention_few(a: Any, rows: int) -> Launch:
    return _attention_of(a, rows, FEW_HEADS)


@rule("attention.attention_q8_k_f16", "attention.attention_q8_k_f32", "attention.attention_q8_k_q8_0")
def _attention_q8_k(a: Any, rows: int) -> Launch:
    return _attention_of(a.attention, rows, FEW_HEADS)


QUERIES, WIDEST = 32, 128
"""The numbers of attention_many.cu: queries of a block, and the largest width of a head."""


def _attention_many(a: Any, rows: int, element: int) -> Launch:
    group = a.n_head // a.n_head_kv
    grid = (blocks(rows, QUERIES // min(group, HEADS)), a.n_head_kv * blocks(group, HEADS))
    row = element * max(a.n_embd_head_k, a.n_embd_head_v) + 16
    return Launch(grid, (256,), 4 * (QUERIES * a.n_embd_head_k + SPLIT * (QUERIES + 4)) + SPLIT * row)


@rule("attention_many.attention_f16")
def _attention_many_f16(a: Any, rows: int) -> Launch:
    return _attention_many(a, rows, 2)


@rule("attention_many.attention_f32", "attention_many.attention_q8_0")
def _attention_many_f32(a: Any, rows: int) -> Launch:
    """Blocks are float32 in shared memory."""
    return _attention_many(a, rows, 4)


WARPS, TOKENS, ROWS_OF_EACH = 4, 4, 2
"""The numbers of matmul.cu: warps of a block, rows of activations at a time, a warp's rows of each of two
weights."""


@rule("matmul.matmul_*")
def _matmul(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.n_out, WARPS * a.warp_rows), blocks(rows, TOKENS)), (32 * WARPS,))


@rule("matmul.matmul_heads_*")
def _matmul_heads(a: Any, rows: int) -> Launch:
    one = _matmul(a, rows)
    return Launch((one.grid[0] * a.n_head, one.grid[1]), one.block)


@rule("matmul.matmul_3_*")
def _matmul_3(a: Any, rows: int) -> Launch:
    parts = [_matmul(part, rows) for part in (a.first, a.second, a.third) if part.n_out]
    return Launch((sum(part.grid[0] for part in parts), parts[0].grid[1]), parts[0].block)


@rule("matmul.matmul_id_*")
def _matmul_id(a: Any, rows: int) -> Launch:
    """rows: places, of which each token has as many as it has experts."""
    return Launch((blocks(a.n_out, WARPS * a.warp_rows_by_expert), rows), (32 * WARPS,))


@rule("matmul.matmul_id_swiglu_*")
def _matmul_id_swiglu(a: Any, rows: int) -> Launch:
    return Launch((blocks(a.gate.n_out, WARPS * ROWS_OF_EACH), rows), (32 * WARPS,))


TILE_TOKENS, TILE_ROWS, TILE_SHARED = 64, 128, 64 << 10
"""The numbers of tile.cuh: rows of activations and of the weight that a block takes, its shared memory."""


@rule("many_tokens.matmul_*")
def _many_tokens(a: Any, rows: int) -> Launch:
    grid = (blocks(rows, TILE_TOKENS), blocks(a.n_out, TILE_ROWS))
    return Launch(grid, (256,), TILE_SHARED)


@rule("many_tokens.matmul_id_*")
def _many_tokens_id(a: Any, rows: int) -> Launch:
    """rows: places; there may be more tiles than this grid has, and a block then takes several."""
    return _many_tokens(a, rows)
