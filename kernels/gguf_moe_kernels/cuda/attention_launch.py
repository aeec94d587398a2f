"""The size of attention's launches, and of what the splits of a cache leave for each other."""

from __future__ import annotations

from typing import Any

from gguf_moe_kernels.cuda.launch_rules import Launch, Rules, blocks

RULES = Rules()

SPLIT, HEADS, HEADS_OF_ONE, COLUMNS = 128, 8, 2, 1024
"""Positions of a split, heads of a block, and columns of its sums: attention_split.cuh, attention_one.cuh."""


def attention_splits(n_ctx: int, n_swa: int) -> int:
    """How many splits of the cache a token can see at most; a window may begin and end within one."""
    n_splits = blocks(n_ctx, SPLIT)
    return min(n_splits, blocks(n_swa, SPLIT) + 1) if n_swa else n_splits


def attention_scores_stride(n_embd_head_v: int, n_splits: int) -> int:
    """ATTENTION.scores_stride: bytes of each head of one token in `scores`, zeros before the first launch.

    0 for n_splits 1, which needs none.
    """
    return 4 * (1 + n_splits * (n_embd_head_v + 2)) if n_splits > 1 else 0


def _blocks_of_heads(a: Any, n_heads: int) -> int:
    """How many blocks take a token's heads, up to n_heads each; no block has heads of two keys."""
    return a.n_head_kv * blocks(a.n_head // a.n_head_kv, n_heads)


@RULES.of("attention.attention_f16", "attention.attention_f32", "attention.attention_q8_0")
def _attention(a: Any, rows: int) -> Launch:
    shared = 4 * HEADS * (a.n_embd_head_k + SPLIT + COLUMNS + 4)
    return Launch((rows, _blocks_of_heads(a, HEADS)), (256,), shared)


@RULES.of("attention_one.attention_f16", "attention_one.attention_f32", "attention_one.attention_q8_0")
def _attention_one(a: Any, rows: int) -> Launch:
    n_splits = max(a.scores_stride // 4 - 1, 0) // (a.n_embd_head_v + 2) or 1
    grid = (1, _blocks_of_heads(a, HEADS_OF_ONE), n_splits)
    return Launch(grid, (256,), 4 * HEADS_OF_ONE * (SPLIT + COLUMNS + 3))


@RULES.of(*(f"attention_one.attention_q8_k_{kind}" for kind in ("f16", "f32", "q8_0")))
def _attention_q8_k(a: Any, rows: int) -> Launch:
    return _attention_one(a.attention, rows)


QUERIES, WIDEST = 32, 128
"""The numbers of attention_many.cuh: queries of a block, and the largest width of a head."""


def _attention_many(a: Any, rows: int, element: int) -> Launch:
    group = a.n_head // a.n_head_kv
    grid = (blocks(rows, QUERIES // min(group, HEADS)), a.n_head_kv * blocks(group, HEADS))
    row = element * max(a.n_embd_head_k, a.n_embd_head_v) + 16
    return Launch(grid, (256,), 4 * (QUERIES * a.n_embd_head_k + SPLIT * (QUERIES + 4)) + SPLIT * row)


@RULES.of("attention_many.attention_f16")
def _attention_many_f16(a: Any, rows: int) -> Launch:
    return _attention_many(a, rows, 2)


@RULES.of("attention_many.attention_f32", "attention_many.attention_q8_0")
def _attention_many_f32(a: Any, rows: int) -> Launch:
    """Blocks are float32 in shared memory."""
    return _attention_many(a, rows, 4)
