"""Several rows of activations with 16 rows of a quantized weight at a time: what prompts spend their time on.

A block of the 16 rows is unpacked once, one lane a row, and then meets all tokens. Each row and token has
four partial sums (dot.py), to which blocks add in turn. Of types with 32 weights in a block two blocks are
unpacked together.

An *unpacked block* in memory:

    QUANTS    i32x16 [64]    4 weights in each lane; 8 of these in types of 32 weights
    SCALES    i32x16 [16]    of each group; only in types of 256 weights
    PAIRS     i32x16 [8]     of each 32 weights the factors of the sums of their activations; likewise
    HEADER    see block.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu import tokens as by_token
from gguf_moe_kernels.cpu.block import DMIN, HEADER_SIZE, D, Layout
from gguf_moe_kernels.cpu.memory import load_f32, make_stack, store_f32, store_i64
from gguf_moe_kernels.cpu.simd import transpose
from gguf_moe_kernels.cpu.tokens import (
    AT_ONCE,
    add_product,
    add_scaled,
    add_term,
    dot_pairs,
    load_one,
    load_some,
    store_one,
    store_some,
    subtract_multiple,
    zero_integers,
)
from gguf_moe_kernels.cpu.vector import (
    add_floats,
    load_f32x16,
    load_i32x16,
    negative,
    store_f32x16,
    store_i8x64,
    store_i32x16,
    zero_f32x16,
)

ROWS = 16
"""Rows of weights side by side: a lane each."""
TOKENS = 64
"""Tokens that stay in the core's cache while the weights pass by."""

LANES_SIZE = 4 * ROWS
QUANTS = 0
SCALES = QUANTS + 64 * LANES_SIZE
PAIRS = SCALES + 16 * LANES_SIZE
HEADER = PAIRS + 8 * LANES_SIZE
UNPACKED_SIZE = HEADER + 2 * HEADER_SIZE
PARTIAL_SIZE = TOKENS * LANES_SIZE
"""Bytes of one of the four partial sums of all tokens."""


def make_many_tokens(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout
) -> Callable[..., Any]:
    """many_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride): up to TOKENS tokens.

    tokens: see tokens.py. out: float32 [n_tokens, n_rows], with out_stride bytes from token to token.
    """
    add_blocks = make_add_blocks(quants, unpack_header, layout)
    stack_unpacked, stack_sums = make_stack(UNPACKED_SIZE), make_stack(4 * PARTIAL_SIZE)

    @njit
    def sixteen_rows(w, row_size, n_in, tokens, n_tokens, unpacked, sums, out, out_stride):
        for at in range(0, 4 * PARTIAL_SIZE, PARTIAL_SIZE):
            for t in range(n_tokens):
                store_f32x16(sums, at + t * LANES_SIZE, zero_f32x16())
        add_blocks(w, row_size, n_in, tokens, n_tokens, unpacked, sums)
        for t in range(n_tokens):
            at = t * LANES_SIZE
            first = add_floats(load_f32x16(sums, at), load_f32x16(sums, at + PARTIAL_SIZE))
            second = add_floats(
                load_f32x16(sums, at + 2 * PARTIAL_SIZE), load_f32x16(sums, at + 3 * PARTIAL_SIZE)
            )
            store_f32x16(out, t * out_stride, add_floats(first, second))

    @njit
    def many_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride):
        unpacked, sums = stack_unpacked(), stack_sums()
        whole = n_rows // ROWS * ROWS
        # What is left over overlaps with the rows before. If there are none, all lanes hold the same row.
        r = 0
        while r < n_rows:
            if whole:
                first = min(r, n_rows - ROWS)
                at = out + 4 * first
                sixteen_rows(
                    w + first * row_size, row_size, n_in, tokens, n_tokens, unpacked, sums, at, out_stride
                )
                r += ROWS
                continue
            sixteen_rows(w + r * row_size, 0, n_in, tokens, n_tokens, unpacked, sums, sums, LANES_SIZE)
            for t in range(n_tokens):
                store_f32(out + t * out_stride, 4 * r, load_f32(sums, t * LANES_SIZE))
            r += 1

    return many_tokens


def make_add_blocks(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout
) -> Callable[..., Any]:
    """add_blocks(w, row_size, n_in, tokens, n_tokens, unpacked, sums): all blocks of 16 rows to the sums."""
    block_size, type_size = layout.block_size, layout.type_size
    add_block = make_add_block(layout)
    prepared, pair, group_scale = layout.prepare(quants), layout.make_pair(), layout.make_group_scale()
    n_groups, has_corrections = block_size // layout.group, bool(layout.whole_offset or layout.has_minimum)
    stack_rows, stack_places = make_stack(ROWS * 64), make_stack(32)

    @njit
    def every_fourth(w, row_size, places):
        """Fills in and returns the four addresses of `unpack_header` for 16 rows."""
        for i in range(4):
            store_i64(places, 8 * i, w + 4 * i * row_size)
        return places

    @njit
    def unpack_quants(w, row_size, k, rows, quants_of_lanes):
        """64 weights of each row, 4 in each lane. k: see Layout.prepare."""
        for r in range(ROWS):
            store_i8x64(rows, 64 * r, prepared(w + r * row_size, k))
        transpose(rows, quants_of_lanes)

    @njit
    def to_tokens(block, header, ib, n_in, tokens, n_tokens, sums):
        """One unpacked block to all tokens."""
        fours = (n_in // block_size + 3) // 4
        q, d = ib * block_size, 4 * fours * block_size + 4 * ib
        plane = 4 * fours * block_size + 16 * fours
        partial = sums + ib % 4 * PARTIAL_SIZE
        t = 0
        while t + AT_ONCE <= n_tokens:
            acc = load_some(partial, t * LANES_SIZE)
            acc = add_block(acc, block, header, tokens + 8 * t, q, d, plane, ib)
            store_some(partial, t * LANES_SIZE, acc)
            t += AT_ONCE
        while t < n_tokens:
            acc = load_one(partial, t * LANES_SIZE)
            store_one(partial, t * LANES_SIZE, add_block(acc, block, header, tokens + 8 * t, q, d, plane, ib))
            t += 1

    @njit
    def add_large_blocks(w, row_size, n_in, tokens, n_tokens, unpacked, sums):
        header, rows, places = unpacked + HEADER, stack_rows(), stack_places()
        for ib in range(n_in // block_size):
            at = w + ib * type_size
            unpack_header(every_fourth(at, row_size, places), row_size, header)
            for j in range(n_groups):
                store_i32x16(unpacked, SCALES + LANES_SIZE * j, group_scale(header, j))
            if has_corrections:
                for j in range(8):
                    store_i32x16(unpacked, PAIRS + LANES_SIZE * j, pair(header, j))
            for k in range(4):
                unpack_quants(at, row_size, k, rows, unpacked + 16 * LANES_SIZE * k)
            to_tokens(unpacked, header, ib, n_in, tokens, n_tokens, sums)

    @njit
    def add_small_blocks(w, row_size, n_in, tokens, n_tokens, unpacked, sums):
        rows, places, n_blocks = stack_rows(), stack_places(), n_in // block_size
        for ib in range(0, n_blocks, 2):
            at, n = w + ib * type_size, min(2, n_blocks - ib)
            unpack_quants(at, row_size, type_size * (n - 1), rows, unpacked)
            for i in range(n):
                header = unpacked + HEADER + HEADER_SIZE * i
                unpack_header(every_fourth(at + i * type_size, row_size, places), row_size, header)
                to_tokens(unpacked + 8 * LANES_SIZE * i, header, ib + i, n_in, tokens, n_tokens, sums)

    return add_large_blocks if layout.is_large else add_small_blocks


def make_add_block(layout: Layout) -> Callable[..., Any]:
    """add_block(acc, unpacked, header, tokens, q, d, plane, ib): acc and the terms of an unpacked block.

    q, d and plane: where the block's int8, its scale and the whole plane of sums stand in a token's row.
    """
    dot = by_token.dot_signed if layout.is_signed else by_token.dot_unsigned
    offset, has_minimum = layout.whole_offset, layout.has_minimum
    n_groups, per_group = layout.block_size // layout.group, layout.group // 4

    @njit
    def add_large(acc, unpacked, header, tokens, q, d, plane, ib):
        zero = zero_integers(acc)
        total, corrections = zero, zero
        for j in range(n_groups):
            part = zero
            for i in range(j * per_group, j * per_group + per_group):
                part = dot(part, load_i32x16(unpacked, QUANTS + LANES_SIZE * i), tokens, q + 4 * i)
            total = add_scaled(total, part, load_i32x16(unpacked, SCALES + LANES_SIZE * j))
        if has_minimum or offset:
            sums = plane + ib // 4 * 128 + ib % 4 * 4
            for j in range(8):
                pairs = load_i32x16(unpacked, PAIRS + LANES_SIZE * j)
                corrections = dot_pairs(corrections, pairs, tokens, sums + 16 * j)
        if offset:
            total = total - corrections * offset
        acc = add_term(acc, load_f32x16(header, D), tokens, d, total)
        if has_minimum:
            acc = add_term(acc, negative(load_f32x16(header, DMIN)), tokens, d, corrections)
        return acc

    @njit
    def add_small(acc, unpacked, header, tokens, q, d, plane, ib):
        total = zero_integers(acc)
        for i in range(8):
            total = dot(total, load_i32x16(unpacked, QUANTS + LANES_SIZE * i), tokens, q + 4 * i)
        if offset:
            total = subtract_multiple(total, tokens, plane + 4 * ib, offset)
        acc = add_term(acc, load_f32x16(header, D), tokens, d, total)
        if has_minimum:
            acc = add_product(acc, load_f32x16(header, DMIN), tokens, plane + 4 * ib)
        return acc

    return add_large if layout.is_large else add_small
