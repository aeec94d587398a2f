"""Several rows of activations with ROWS rows of a quantized weight at a time: where prompts spend their time.

A block of each row is unpacked once, one lane a row, and then meets all tokens. Each row and token has four
partial sums (dot.py), to which blocks add in turn. Of types with 32 weights in a block two blocks are
unpacked together. What an unpacked block is: unpacked.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.group_sums import make_add_products, make_add_scaled
from gguf_moe_kernels.cpu.memory import (
    load_f32,
    load_i64,
    make_stack,
    store_f32,
    store_i64,
)
from gguf_moe_kernels.cpu.tokens import (
    AT_ONCE,
    LANES_SIZE,
    PAIR,
    ROWS,
    add_product,
    add_term,
    dot_pairs,
    dot_unsigned,
    load_integers,
    load_one,
    load_pair,
    load_some,
    ones,
    store_one,
    store_pair,
    store_some,
    subtract_multiple,
    zero_integers,
    zero_one,
)
from gguf_moe_kernels.cpu.unpacked import FACTORS, PAIRS, PARTS, SCALES, UNPACKED_SIZE, make_unpack
from gguf_moe_kernels.cpu.vector import (
    add_floats,
    load_f32x16,
    negative,
    store_f32x16,
)

TOKENS = 64
"""Tokens that stay in the core's cache while the weights pass by."""
PARTIAL_SIZE = TOKENS * LANES_SIZE
"""Bytes of one of the four partial sums of all tokens."""


def make_many_tokens(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout
) -> Callable[..., Any]:
    """many_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride): up to TOKENS tokens.

    tokens: see tokens.py; of an odd number the first one is also put behind the last, so that none is
    computed alone. out: float32 [n_tokens, n_rows], with out_stride bytes from token to token.
    """
    add_blocks = make_add_blocks(quants, unpack_header, layout)
    stack_unpacked, stack_sums = make_stack(UNPACKED_SIZE), make_stack(4 * PARTIAL_SIZE)
    stack_starts = make_stack(8 * PARTS)

    @njit
    def rows_by_tokens(starts, row_size, n_in, tokens, n_tokens, unpacked, sums):
        """The sums of 16 rows from each address of `starts` on, to the first partial sum."""
        n_computed = (n_tokens + PAIR - 1) // PAIR * PAIR
        for t in range(n_computed):
            for s in range(4):
                store_one(sums, s * PARTIAL_SIZE + t * LANES_SIZE, zero_one())
        add_blocks(starts, row_size, n_in, tokens, n_computed, unpacked, sums)
        for t in range(n_tokens):
            at = t * LANES_SIZE
            first = add_floats(load_one(sums, at), load_one(sums, at + PARTIAL_SIZE))
            second = add_floats(load_one(sums, at + 2 * PARTIAL_SIZE), load_one(sums, at + 3 * PARTIAL_SIZE))
            store_one(sums, at, add_floats(first, second))

    @njit
    def few_rows(w, row_size, n_rows, n_in, tokens, n_tokens, unpacked, sums, starts, out, out_stride):
        """Less than 16 rows: one by one, and all lanes hold the same."""
        for r in range(n_rows):
            for part in range(PARTS):
                store_i64(starts, 8 * part, w + r * row_size)
            rows_by_tokens(starts, 0, n_in, tokens, n_tokens, unpacked, sums)
            for t in range(n_tokens):
                store_f32(out + t * out_stride, 4 * r, load_f32(sums, t * LANES_SIZE))

    @njit
    def many_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride):
        unpacked, sums, starts = stack_unpacked(), stack_sums(), stack_starts()
        if n_tokens % PAIR:
            store_i64(tokens, 8 * n_tokens, load_i64(tokens, 0))
        if n_rows < 16:
            few_rows(w, row_size, n_rows, n_in, tokens, n_tokens, unpacked, sums, starts, out, out_stride)
            return
        for r in range(0, n_rows, ROWS):
            # The last parts overlap with those before them.
            for part in range(PARTS):
                first = min(r + 16 * part, n_rows - 16)
                store_i64(starts, 8 * part, w + first * row_size)
            rows_by_tokens(starts, row_size, n_in, tokens, n_tokens, unpacked, sums)
            for part in range(PARTS):
                first = min(r + 16 * part, n_rows - 16)
                for t in range(n_tokens):
                    lanes = load_f32x16(sums, t * LANES_SIZE + 64 * part)
                    store_f32x16(out + t * out_stride, 4 * first, lanes)

    return many_tokens


def make_add_blocks(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout
) -> Callable[..., Any]:
    """add_blocks(starts, row_size, n_in, tokens, n_tokens, unpacked, sums): all blocks of the rows."""
    block_size, type_size = layout.block_size, layout.type_size
    add_block, unpack = make_add_block(layout), make_unpack(quants, unpack_header, layout)
    at_once = 1 if layout.is_large else 2

    @njit
    def to_tokens(unpacked, factors, ib, n_in, tokens, n_tokens, sums):
        """One unpacked block to all tokens."""
        fours = (n_in // block_size + 3) // 4
        q, d = ib * block_size, 4 * fours * block_size + 4 * ib
        plane = 4 * fours * block_size + 16 * fours
        partial = sums + ib % 4 * PARTIAL_SIZE
        t = 0
        while t + AT_ONCE <= n_tokens:
            acc = load_some(partial, t * LANES_SIZE)
            acc = add_block(acc, unpacked, factors, tokens + 8 * t, q, d, plane, ib)
            store_some(partial, t * LANES_SIZE, acc)
            t += AT_ONCE
        while t < n_tokens:
            acc = load_pair(partial, t * LANES_SIZE)
            acc = add_block(acc, unpacked, factors, tokens + 8 * t, q, d, plane, ib)
            store_pair(partial, t * LANES_SIZE, acc)
            t += PAIR

    @njit
    def add_blocks(starts, row_size, n_in, tokens, n_tokens, unpacked, sums):
        n_blocks = n_in // block_size
        for ib in range(0, n_blocks, at_once):
            n = min(at_once, n_blocks - ib)
            unpack(starts, row_size, ib * type_size, n, unpacked)
            for i in range(n):
                factors = unpacked + FACTORS + 2 * LANES_SIZE * i
                to_tokens(unpacked + 8 * LANES_SIZE * i, factors, ib + i, n_in, tokens, n_tokens, sums)

    return add_blocks


def make_add_block(layout: Layout) -> Callable[..., Any]:
    """add_block(acc, unpacked, factors, tokens, q, d, plane, ib): acc and the terms of an unpacked block.

    q, d and plane: where the block's int8, its scale and the whole plane of sums stand in a token's row.
    """
    offset, has_minimum = layout.whole_offset, layout.has_minimum
    n_groups, per_group = layout.block_size // layout.group, layout.group // 4
    add_group, add_products = make_add_scaled(layout, per_group), make_add_products(layout, per_group)

    @njit
    def add_large(acc, unpacked, factors, tokens, q, d, plane, ib):
        zero = zero_integers(acc)
        total, corrections = zero, zero
        for j in range(n_groups):
            scale = SCALES + LANES_SIZE * j
            total = add_group(total, unpacked, j * per_group, scale, tokens, q)
        if has_minimum or offset:
            sums = plane + ib // 4 * 128 + ib % 4 * 4
            for j in range(8):
                pairs = load_integers(unpacked, PAIRS + LANES_SIZE * j)
                corrections = dot_pairs(corrections, pairs, tokens, sums + 16 * j)
        if offset:
            total = total - corrections * offset
        acc = add_term(acc, load_one(factors, 0), tokens, d, total)
        if has_minimum:
            acc = add_term(acc, negative(load_one(factors, LANES_SIZE)), tokens, d, corrections)
        return acc

    @njit
    def add_small(acc, unpacked, factors, tokens, q, d, plane, ib):
        total = add_products(zero_integers(acc), unpacked, 0, tokens, q)
        if offset:
            total = subtract_multiple(total, tokens, plane + 4 * ib, offset)
        acc = add_term(acc, load_one(factors, 0), tokens, d, total)
        if has_minimum:
            acc = add_product(acc, load_one(factors, LANES_SIZE), tokens, plane + 4 * ib)
        return acc

    @njit
    def half(zero, unpacked, first, tokens, q):
        """The sum of 16 weights times activations, of int32 number `first` on."""
        total, plain = add_products(zero, unpacked, first, tokens, q), zero
        for i in range(first, first + 4):
            plain = dot_unsigned(plain, ones(), tokens, q + 4 * i)
        return total - plain * offset

    @njit
    def add_halves(acc, unpacked, factors, tokens, q, d, plane, ib):
        zero = zero_integers(acc)
        acc = add_term(acc, load_one(factors, 0), tokens, d, half(zero, unpacked, 0, tokens, q))
        return add_term(acc, load_one(factors, LANES_SIZE), tokens, d, half(zero, unpacked, 4, tokens, q))

    if layout.has_two_scales:
        return add_halves
    return add_large if layout.is_large else add_small
