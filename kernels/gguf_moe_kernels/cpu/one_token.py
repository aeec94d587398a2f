"""One row of activations with many rows of a quantized weight: where decoding spends its time.

Where it pays (Layout.in_order, on some cores) rows of whole fours of blocks pass one after the other:
in_order.py. Others pass four side by side, one from each quarter of the rows, so that memory is read as four
streams; each from front to back, four blocks at a time. The 16 blocks of a step (lane 4i + j: block i of row
j) share their header, and end as 16 sums: the four partial sums of each row (dot.py: block index mod 4) for
four rows. What comes next in each stream is asked for ahead of time; left to itself the processor waits for
memory most of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import DMIN, D, stack_header
from gguf_moe_kernels.cpu.block_sums import Products, make_two_blocks
from gguf_moe_kernels.cpu.in_order import make_rows_in_order
from gguf_moe_kernels.cpu.lanes import (
    add_quarters,
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
from gguf_moe_kernels.cpu.memory import (
    ask_for,
    copy_bytes,
    fill_zero,
    keep_order,
    load_f32,
    make_stack,
    opaque,
    store_f32,
    store_i64,
)
from gguf_moe_kernels.cpu.simd import dot_pairs
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import (
    as_bytes,
    fma_floats,
    load_f32x16,
    load_i8x64,
    multiply_floats,
    negative,
    store_f32x4,
    to_floats,
    zero_f32x16,
    zero_i32x16,
)

LIKES_ORDER = Target.numba().cpu in ("znver3", "znver5")
"""Zen 4 and Sapphire Rapids gain from four streams with every type, and want to be asked later."""
AHEAD = 2048 if LIKES_ORDER else 1024
"""Bytes between what is read in a stream and what is asked for there."""


def make_one_token(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], meeting: Products
) -> Callable[..., Any]:
    """one_token(w, row_size, n_rows, n_in, x, out): out float32 [n_rows] = n_rows rows of weights times x."""
    layout = meeting.layout
    type_size, block_size = layout.type_size, layout.block_size
    four_size, sums_size = 4 * type_size, 128 if layout.is_large else 16
    in_order, add_blocks = layout.in_order and LIKES_ORDER, make_add_blocks(quants, meeting)
    rows_in_order = make_rows_in_order(meeting, unpack_header) if in_order else None
    header_place = layout.make_header_place()
    stack_places, stack_tails, stack_sums = make_stack(32), make_stack(4 * four_size), make_stack(16)

    @njit
    def copy_blocks(w, stride, n_blocks, tails):
        """The last n_blocks of four rows, with zeros up to four blocks each."""
        fill_zero(tails, 4 * four_size)
        for j in range(4):
            copy_bytes(tails + j * four_size, w + j * stride, n_blocks * type_size)

    @njit
    def four_rows(w, stride, n_blocks, x, header, ahead, end):
        """The sums of four rows, `stride` bytes apart. Up to `end` memory may be read."""
        places, tails = stack_places(), stack_tails()
        fours = (n_blocks + 3) // 4
        d = x + 4 * fours * block_size
        sums = d + 16 * fours
        acc = zero_f32x16()
        for i in range(fours):
            at, step, left = w + i * four_size, stride, n_blocks - 4 * i
            # Blocks behind a row's last one do not count, so they may be the next row's.
            if left < 4 and at + 3 * stride + four_size > end:
                copy_blocks(at, stride, left, tails)
                at, step = tails, four_size
            for m in range(4):
                store_i64(places, 8 * m, header_place(at, m))
            unpack_header(places, step, header)
            keep_order()  # so that scales are broadcast by loads
            q, next_ = x + 4 * i * block_size, w + ahead + i * four_size
            new = add_blocks(acc, at, step, header, q, d + 16 * i, sums + i * sums_size, next_, stride)
            acc = keep_first(left, new, acc)
        return add_quarters(acc)

    @njit
    def one_token(w, row_size, n_rows, n_in, x, out):
        header, sums = opaque(stack_header()), stack_sums()
        n_blocks, quarter = n_in // block_size, n_rows // 4
        apart, end = quarter * row_size, w + n_rows * row_size
        if in_order and n_blocks % 4 == 0:
            rows_in_order(w, 4 * quarter, n_blocks // 4, x, out)
        else:
            for r in range(quarter):
                # Behind a quarter comes the same quarter of the next rows, which are likely to be next.
                ahead = AHEAD + 3 * apart if (r + 1) * row_size + AHEAD > apart else AHEAD
                result = four_rows(w + r * row_size, apart, n_blocks, x, header, ahead, end)
                store_f32x4(sums, 0, result)
                for j in range(4):
                    store_f32(out, 4 * (r + j * quarter), load_f32(sums, 4 * j))
        for r in range(4 * quarter, n_rows):  # rows that are left over come one by one
            store_f32x4(sums, 0, four_rows(w + r * row_size, 0, n_blocks, x, header, AHEAD, end))
            store_f32(out, 4 * r, load_f32(sums, 0))

    return one_token


def make_add_blocks(quants: Callable[..., Any], meeting: Products) -> Callable[..., Any]:
    """add_blocks(acc, w, stride, header, q, d, sums, next_, apart): acc plus terms of 4 x 4 blocks.

    w is the address of the first row's four blocks, those of the next row are `stride` bytes behind; q, d and
    sums belong to them in x. Meanwhile as many blocks are asked for at next_ and, for the other rows, each
    time `apart` bytes behind: a few lines at a time, as more at once block the loads behind them.
    """
    layout = meeting.layout
    type_size, offset, has_minimum = layout.type_size, layout.whole_offset, layout.has_minimum
    prepared, dot, pair = layout.prepare(quants), layout.dot, layout.make_pair()
    two_blocks = make_two_blocks(meeting)

    @njit
    def block_of_rows(w, stride, header, lane, q, next_, apart):
        """Integer sums of the same block of four rows, spread over the quarters."""
        ask_for(next_, type_size)
        ask_for(next_ + apart, type_size)
        a = two_blocks(w, w + stride, header, lane, q, q)
        ask_for(next_ + 2 * apart, type_size)
        ask_for(next_ + 3 * apart, type_size)
        w += 2 * stride
        b = two_blocks(w, w + stride, header, lane + 2, q, q)
        return sum_twos(a, b)

    @njit
    def add_large(acc, w, stride, header, q, d, sums, next_, apart):
        a = block_of_rows(w, stride, header, 0, q, next_, apart)
        b = block_of_rows(w + type_size, stride, header, 4, q + 256, next_ + type_size, apart)
        c = block_of_rows(w + 2 * type_size, stride, header, 8, q + 512, next_ + 2 * type_size, apart)
        e = block_of_rows(w + 3 * type_size, stride, header, 12, q + 768, next_ + 3 * type_size, apart)
        total = sum_quarters(a, b, c, e)
        corrections = zero_i32x16()
        if offset or has_minimum:
            for j in range(8):
                pairs = load_repeated_i32(sums, 16 * j)
                corrections = dot_pairs(corrections, pair(header, j), pairs)
        if offset:
            total = total - corrections * offset
        scale = load_repeated_f32(d, 0)
        acc = fma_floats(multiply_floats(load_f32x16(header, D), scale), to_floats(total), acc)
        if has_minimum:
            factor = negative(multiply_floats(load_f32x16(header, DMIN), scale))
            acc = fma_floats(factor, to_floats(corrections), acc)
        return acc

    @njit
    def two_blocks_of_rows(w, stride, q):
        """Integer sums of a block and the next of four rows, in two quarters each."""
        zero, x = zero_i32x16(), load_i8x64(q, 0)
        a, b = dot(zero, prepared(w, type_size), x), dot(zero, prepared(w + stride, type_size), x)
        w += 2 * stride
        c, d = dot(zero, prepared(w, type_size), x), dot(zero, prepared(w + stride, type_size), x)
        return sum_fours(a, b, c, d)

    @njit
    def ask_for_fours(next_, apart):
        for j in range(4):
            ask_for(next_ + j * apart, 4 * type_size)

    @njit
    def add_small(acc, w, stride, header, q, d, sums, next_, apart):
        ask_for_fours(next_, apart)
        first = two_blocks_of_rows(w, stride, q)
        total = sum_halves(first, two_blocks_of_rows(w + 2 * type_size, stride, q + 64))
        if offset:
            total = total - load_repeated_i32(sums, 0) * offset
        scale = load_repeated_f32(d, 0)
        acc = fma_floats(multiply_floats(load_f32x16(header, D), scale), to_floats(total), acc)
        if has_minimum:
            acc = fma_floats(load_f32x16(header, DMIN), load_repeated_f32(sums, 0), acc)
        return acc

    @njit
    def sums_of_16(w, stride, q):
        """Integer sums of each 16 of 64 weights (a quarter) of four rows."""
        ones, x = as_bytes(splat_i32(0x01010101)), load_i8x64(q, 0)
        plain = dot(zero_i32x16(), ones, x)
        return two_blocks_of_rows(w, stride, q) - sum_fours(plain, plain, plain, plain) * offset

    @njit
    def add_halves(acc, w, stride, header, q, d, sums, next_, apart):
        ask_for_fours(next_, apart)
        a, b = sums_of_16(w, stride, q), sums_of_16(w + 2 * type_size, stride, q + 64)
        scale = load_repeated_f32(d, 0)
        first, second = to_floats(even_quarters(a, b)), to_floats(odd_quarters(a, b))
        acc = fma_floats(multiply_floats(load_f32x16(header, D), scale), first, acc)
        return fma_floats(multiply_floats(load_f32x16(header, DMIN), scale), second, acc)

    if layout.has_two_scales:
        return add_halves
    return add_large if layout.is_large else add_small
