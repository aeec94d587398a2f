"""One token with rows of large blocks in the order of memory: the fastest way to read a matrix once.

All rows together are one sequence of *fours*, four blocks each. A step takes four fours, whichever rows they
belong to: lane 4i + j is block j of the i-th. So a step has one header, as in few_tokens.py, and ends as four
times the four partial sums of a row (dot.py: block index mod 4), which are added one four after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import DMIN, D, stack_header
from gguf_moe_kernels.cpu.block_sums import Products, make_two_blocks
from gguf_moe_kernels.cpu.lanes import (
    load_quarters_f32,
    load_quarters_i32,
    quarter_0,
    quarter_1,
    quarter_2,
    quarter_3,
    sum_four_floats,
    sum_quarters,
    sum_twos,
)
from gguf_moe_kernels.cpu.memory import LINE, keep_order, make_stack, opaque, prefetch, store_f32, store_i64
from gguf_moe_kernels.cpu.simd import dot_pairs
from gguf_moe_kernels.cpu.vector import (
    fma_floats,
    load_f32x16,
    multiply_floats,
    negative,
    to_floats,
    zero_f32x4,
    zero_i32x16,
)

AHEAD = 16384
"""Bytes between what is read and what is asked for."""
FOUR_X, FOUR_D, FOUR_SUMS = 1024, 16, 128
"""Bytes of the activations of a four, of their scales, and of their sums (activations.py: Q8_K)."""


def make_rows_in_order(meeting: Products, unpack_header: Callable[..., Any]) -> Callable[..., Any]:
    """rows_in_order(w, n_rows, fours, x, out): out float32 [n_rows] = rows of so many fours times x.

    n_rows is a multiple of 4.
    """
    layout = meeting.layout
    type_size, offset, has_minimum = layout.type_size, layout.whole_offset, layout.has_minimum
    pair, two_blocks, stack_places = layout.make_pair(), make_two_blocks(meeting), make_stack(32)
    step_lines = -(-16 * type_size // LINE)

    @njit
    def ask_for_share(next_, lane):
        """A sixteenth of the lines of a step: more at once block the loads behind them."""
        for line in range(step_lines * lane // 16, step_lines * (lane + 1) // 16):
            prefetch(next_, LINE * line)
        keep_order()

    @njit
    def sums_of_two(w, header, lane, q, next_):
        ask_for_share(next_, lane)
        ask_for_share(next_, lane + 1)
        (total,) = two_blocks(w, w + type_size, header, lane, (q,), 0, 256)
        return total

    @njit
    def sums_of_four(w, header, lane, q, next_):
        """Integer sums of four blocks, spread over the quarters."""
        a = sums_of_two(w, header, lane, q, next_)
        return sum_twos(a, sums_of_two(w + 2 * type_size, header, lane + 2, q + 512, next_))

    @njit
    def integer_sums(w, header, x, a, b, c, d, next_):
        """Of each block of a step; a to d are the fours' places in their rows."""
        s0 = sums_of_four(w, header, 0, x + FOUR_X * a, next_)
        s1 = sums_of_four(w + 4 * type_size, header, 4, x + FOUR_X * b, next_)
        s2 = sums_of_four(w + 8 * type_size, header, 8, x + FOUR_X * c, next_)
        s3 = sums_of_four(w + 12 * type_size, header, 12, x + FOUR_X * d, next_)
        return sum_quarters(s0, s1, s2, s3)

    @njit
    def integer_corrections(header, sums, a, b, c, d):
        """What the minimums, or the scales for the offset, make of the sums of activations."""
        a, b, c, d = sums + FOUR_SUMS * a, sums + FOUR_SUMS * b, sums + FOUR_SUMS * c, sums + FOUR_SUMS * d
        total = zero_i32x16()
        for j in range(8):
            total = dot_pairs(total, pair(header, j), load_quarters_i32(a, b, c, d, 16 * j))
        return total

    @njit
    def add_four(acc, scale, total, factor, correction):
        acc = fma_floats(scale, total, acc)
        return fma_floats(factor, correction, acc) if has_minimum else acc

    @njit
    def end_of_row(acc, f, fours, out):
        """Behind a four: the sum to `out` if it was the row's last."""
        if f + 1 < fours:
            return acc, out
        store_f32(out, 0, sum_four_floats(acc))
        return zero_f32x4(), out + 4

    @njit
    def following(f, fours):
        return f + 1 if f + 1 < fours else 0

    @njit
    def rows_in_order(w, n_rows, fours, x, out):
        header, places = opaque(stack_header()), stack_places()
        scales = x + FOUR_X * fours
        sums = scales + FOUR_D * fours
        acc, a = zero_f32x4(), 0
        for _ in range(n_rows * fours // 4):
            b = following(a, fours)
            c = following(b, fours)
            d = following(c, fours)
            for i in range(4):
                store_i64(places, 8 * i, w + 4 * i * type_size)
            unpack_header(places, type_size, header)
            keep_order()  # so that scales are broadcast by loads
            total = integer_sums(w, header, x, a, b, c, d, w + AHEAD)
            corrections = zero_i32x16()
            if offset or has_minimum:
                corrections = integer_corrections(header, sums, a, b, c, d)
            if offset:
                total = total - corrections * offset
            of_x = load_quarters_f32(
                scales + FOUR_D * a, scales + FOUR_D * b, scales + FOUR_D * c, scales + FOUR_D * d, 0
            )
            scale, terms = multiply_floats(load_f32x16(header, D), of_x), to_floats(total)
            factor, minimums = scale, terms
            if has_minimum:
                factor = negative(multiply_floats(load_f32x16(header, DMIN), of_x))
                minimums = to_floats(corrections)
            acc = add_four(acc, quarter_0(scale), quarter_0(terms), quarter_0(factor), quarter_0(minimums))
            acc, out = end_of_row(acc, a, fours, out)
            acc = add_four(acc, quarter_1(scale), quarter_1(terms), quarter_1(factor), quarter_1(minimums))
            acc, out = end_of_row(acc, b, fours, out)
            acc = add_four(acc, quarter_2(scale), quarter_2(terms), quarter_2(factor), quarter_2(minimums))
            acc, out = end_of_row(acc, c, fours, out)
            acc = add_four(acc, quarter_3(scale), quarter_3(terms), quarter_3(factor), quarter_3(minimums))
            acc, out = end_of_row(acc, d, fours, out)
            w += 16 * type_size
            a = following(d, fours)

    return rows_in_order
