"""The terms that 16 blocks, four of each of four rows, add to the sums of a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import DMIN, D
from gguf_moe_kernels.cpu.block_sums import Products, make_two_blocks
from gguf_moe_kernels.cpu.each import MOST_TOKENS, each
from gguf_moe_kernels.cpu.lanes import (
    even_quarters,
    keep_first,
    load_repeated_f32,
    load_repeated_i32,
    odd_quarters,
    splat_i32,
    sum_fours,
    sum_halves,
    sum_quarters,
    sum_twos,
)
from gguf_moe_kernels.cpu.memory import ask_for, make_stack
from gguf_moe_kernels.cpu.simd import dot_pairs
from gguf_moe_kernels.cpu.vector import (
    as_bytes,
    fma_floats,
    load_f32x16,
    load_i8x64,
    load_i32x16,
    multiply_floats,
    negative,
    store_i32x16,
    to_floats,
    zero_i32x16,
)

SUMS_SIZE = 8 * 64
"""Bytes of a token's integer sums of 16 large blocks, two blocks each."""


def make_add_blocks(quants: Callable[..., Any], meeting: Products) -> Callable[..., Any]:
    """add_blocks(accs, w, stride, header, left, xs, q, d, sums, next_, apart): accs plus 16 blocks' terms.

    accs: of each token an f32x16, lane 4i + j for the i-th block of row j.
    w: the address of the first row's blocks; those of the next row are `stride` bytes behind. The first
    `left` of each row count. xs: the addresses of n rows of activations; q, d and sums: where in each what
    belongs to the blocks begins.

    Meanwhile as many blocks are asked for at next_ and, for the other rows, each time `apart` bytes behind: a
    few lines at a time, as more at once block the loads behind them.
    """
    layout = meeting.layout
    if layout.is_large:
        return _make_add_large(meeting)
    make = _make_add_halves if layout.has_two_scales else _make_add_small
    return make(quants, meeting)


@njit
def _add_term(acc, left, factor, total):
    """acc + factor * total in the lanes of blocks that count."""
    return keep_first(left, fma_floats(factor, total, acc), acc)


def _make_add_large(meeting: Products) -> Callable[..., Any]:
    layout = meeting.layout
    type_size, offset, has_minimum = layout.type_size, layout.whole_offset, layout.has_minimum
    two_blocks, sums_factors = make_two_blocks(meeting), layout.make_pair()
    stack_sums = make_stack(SUMS_SIZE * MOST_TOKENS)

    @njit
    def store_sums(out, t, total):
        store_i32x16(out, SUMS_SIZE * t, total)
        return 0

    @njit
    def total_of(sums, t):
        """A token's integer sums of the 16 blocks."""
        sums += SUMS_SIZE * t
        a = sum_twos(load_i32x16(sums, 0), load_i32x16(sums, 64))
        b = sum_twos(load_i32x16(sums, 128), load_i32x16(sums, 192))
        c = sum_twos(load_i32x16(sums, 256), load_i32x16(sums, 320))
        d = sum_twos(load_i32x16(sums, 384), load_i32x16(sums, 448))
        return sum_quarters(a, b, c, d)

    @njit
    def add_terms(shared, t, acc, x):
        block_sums, header, left, d, sums = shared
        total, corrections = total_of(block_sums, t), zero_i32x16()
        if offset or has_minimum:
            for j in range(8):
                of_x = load_repeated_i32(x + sums, 16 * j)
                corrections = dot_pairs(corrections, sums_factors(header, j), of_x)
        if offset:
            total = total - corrections * offset
        scale = load_repeated_f32(x, d)
        acc = _add_term(acc, left, multiply_floats(load_f32x16(header, D), scale), to_floats(total))
        if has_minimum:
            factor = negative(multiply_floats(load_f32x16(header, DMIN), scale))
            acc = _add_term(acc, left, factor, to_floats(corrections))
        return acc

    @njit
    def add_blocks(accs, w, stride, header, left, xs, q, d, sums, next_, apart):
        block_sums = stack_sums()
        # Loops, as the compiler puts two_blocks inside only where it is called once.
        for i in range(4):  # the same block of four rows
            at, ask = w + i * type_size, next_ + i * type_size
            for j in range(0, 4, 2):
                ask_for(ask + j * apart, type_size)
                ask_for(ask + (j + 1) * apart, type_size)
                v = at + j * stride
                totals = two_blocks(v, v + stride, header, 4 * i + j, xs, q + 256 * i, q + 256 * i)
                each(store_sums, block_sums + 64 * (2 * i + j // 2), totals)
        return each(add_terms, (block_sums, header, left, d, sums), accs, xs)

    return add_blocks


def _make_blocks_of_rows(quants: Callable[..., Any], meeting: Products) -> Callable[..., Any]:
    """blocks_of_rows(w, stride, xs, q, next_, apart): integer sums of each token's 16 small blocks, two
    tuples: those of the first two blocks of four rows, in two quarters each, and those of the others."""
    layout = meeting.layout
    prepared, dot, type_size = layout.prepare(quants), layout.dot, layout.type_size
    offset = layout.whole_offset if layout.has_two_scales else 0

    @njit
    def dots(shared, t, x):
        a, b, c, d, q = shared
        zero, v = zero_i32x16(), load_i8x64(x, q)
        total = sum_fours(dot(zero, a, v), dot(zero, b, v), dot(zero, c, v), dot(zero, d, v))
        if offset:
            plain = dot(zero, as_bytes(splat_i32(0x01010101)), v)
            total = total - sum_fours(plain, plain, plain, plain) * offset
        return total

    @njit
    def two_blocks_of_rows(w, stride, xs, q):
        a, b = prepared(w, type_size), prepared(w + stride, type_size)
        w += 2 * stride
        c, d = prepared(w, type_size), prepared(w + stride, type_size)
        return each(dots, (a, b, c, d, q), xs)

    @njit
    def blocks_of_rows(w, stride, xs, q, next_, apart):
        for j in range(4):
            ask_for(next_ + j * apart, 4 * type_size)
        first = two_blocks_of_rows(w, stride, xs, q)
        return first, two_blocks_of_rows(w + 2 * type_size, stride, xs, q + 64)

    return blocks_of_rows


def _make_add_small(quants: Callable[..., Any], meeting: Products) -> Callable[..., Any]:
    offset, has_minimum = meeting.layout.whole_offset, meeting.layout.has_minimum
    blocks_of_rows = _make_blocks_of_rows(quants, meeting)

    @njit
    def add_terms(shared, t, acc, first, second, x):
        header, left, d, sums = shared
        total = sum_halves(first, second)
        if offset:
            total = total - load_repeated_i32(x, sums) * offset
        factor = multiply_floats(load_f32x16(header, D), load_repeated_f32(x, d))
        acc = _add_term(acc, left, factor, to_floats(total))
        if has_minimum:
            acc = _add_term(acc, left, load_f32x16(header, DMIN), load_repeated_f32(x, sums))
        return acc

    @njit
    def add_blocks(accs, w, stride, header, left, xs, q, d, sums, next_, apart):
        first, second = blocks_of_rows(w, stride, xs, q, next_, apart)
        return each(add_terms, (header, left, d, sums), accs, first, second, xs)

    return add_blocks


def _make_add_halves(quants: Callable[..., Any], meeting: Products) -> Callable[..., Any]:
    blocks_of_rows = _make_blocks_of_rows(quants, meeting)

    @njit
    def add_terms(shared, t, acc, a, b, x):
        header, left, d = shared
        scale, first, second = load_repeated_f32(x, d), even_quarters(a, b), odd_quarters(a, b)
        acc = _add_term(acc, left, multiply_floats(load_f32x16(header, D), scale), to_floats(first))
        return _add_term(acc, left, multiply_floats(load_f32x16(header, DMIN), scale), to_floats(second))

    @njit
    def add_blocks(accs, w, stride, header, left, xs, q, d, sums, next_, apart):
        first, second = blocks_of_rows(w, stride, xs, q, next_, apart)
        return each(add_terms, (header, left, d), accs, first, second, xs)

    return add_blocks
