"""A few rows of activations with many rows of a quantized weight: where decoding spends its time.

Four rows of weights pass side by side, one from each quarter of the rows, so that memory is read as four
streams; each from front to back, four blocks at a time. The 16 blocks of a step (lane 4i + j: block i of row
j) share their header, and end as 16 sums: the four partial sums of each row (dot.py: block index mod 4) for
four rows. What comes next in each stream is asked for ahead of time; left to itself the processor waits for
memory most of the time. Where it pays (Layout.in_order, on some cores) rows of whole fours of blocks pass one
after the other for one token: in_order.py.

Up to MOST_TOKENS tokens share what is unpacked. A second one takes no more time where memory is the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, stack_header
from gguf_moe_kernels.cpu.block_sums import Products
from gguf_moe_kernels.cpu.block_terms import make_add_blocks
from gguf_moe_kernels.cpu.each import MOST_TOKENS, each
from gguf_moe_kernels.cpu.in_order import make_rows_in_order
from gguf_moe_kernels.cpu.lanes import add_quarters
from gguf_moe_kernels.cpu.memory import (
    copy_bytes,
    fill_zero,
    keep_order,
    load_f32,
    load_i64,
    make_stack,
    opaque,
    store_f32,
    store_i64,
)
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import store_f32x4, zero_f32x16

LIKES_ORDER = Target.numba().cpu in ("znver3", "znver5")
"""Zen 4 and Sapphire Rapids gain from four streams with every type, and want to be asked later."""
AHEAD = 2048 if LIKES_ORDER else 1024
"""Bytes between what is read in a stream and what is asked for there."""


def most_tokens(layout: Layout) -> int:
    """How many tokens few_tokens takes."""
    return MOST_TOKENS if layout.is_large else MOST_TOKENS - 1


def make_few_tokens(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], meeting: Products
) -> Callable[..., Any]:
    """few_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride): n_rows rows of weights times
    n_tokens rows of activations, whose addresses stand at `tokens`. out: float32 [n_tokens, n_rows], rows
    out_stride bytes apart."""
    layout = meeting.layout
    type_size, block_size = layout.type_size, layout.block_size
    four_size, sums_size = 4 * type_size, 128 if layout.is_large else 16
    in_order, add_blocks = layout.in_order and LIKES_ORDER, make_add_blocks(quants, meeting)
    rows_in_order = make_rows_in_order(meeting, unpack_header) if in_order else None
    header_place, has_fourth = layout.make_header_place(), most_tokens(layout) == 4
    stack_places, stack_tails = make_stack(32), make_stack(4 * four_size)
    stack_sums = make_stack(16 * MOST_TOKENS)

    @njit
    def copy_blocks(w, stride, n_blocks, tails):
        """The last n_blocks of four rows, with zeros up to four blocks each."""
        fill_zero(tails, 4 * four_size)
        for j in range(4):
            copy_bytes(tails + j * four_size, w + j * stride, n_blocks * type_size)

    @njit
    def zero(shared, t, x):
        return zero_f32x16()

    @njit
    def store_sums(out, t, acc):
        store_f32x4(out, 16 * t, add_quarters(acc))
        return 0

    @njit
    def four_rows(w, stride, n_blocks, xs, header, ahead, end, out):
        """Each token's sums of four rows, `stride` bytes apart, to out (float32 [n, 4]). Up to `end` memory
        may be read."""
        places, tails = stack_places(), stack_tails()
        fours = (n_blocks + 3) // 4
        d = 4 * fours * block_size
        sums = d + 16 * fours
        accs = each(zero, 0, xs)
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
            of_x = 4 * i * block_size, d + 16 * i, sums + i * sums_size
            accs = add_blocks(accs, at, step, header, left, xs, *of_x, w + ahead + i * four_size, stride)
        each(store_sums, out, accs)

    @njit
    def rows_of_tokens(tokens, n_tokens, w, stride, n_blocks, header, ahead, end, out):
        """four_rows for the addresses at `tokens`."""
        a, b = load_i64(tokens, 0), load_i64(tokens, 8)
        c, d = load_i64(tokens, 16), load_i64(tokens, 24)
        if n_tokens == 1:
            four_rows(w, stride, n_blocks, (a,), header, ahead, end, out)
        elif n_tokens == 2:
            four_rows(w, stride, n_blocks, (a, b), header, ahead, end, out)
        elif n_tokens == 3:
            four_rows(w, stride, n_blocks, (a, b, c), header, ahead, end, out)
        elif has_fourth:
            four_rows(w, stride, n_blocks, (a, b, c, d), header, ahead, end, out)

    @njit
    def few_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, out, out_stride):
        header, sums = opaque(stack_header()), stack_sums()
        n_blocks, quarter = n_in // block_size, n_rows // 4
        apart, end, done = quarter * row_size, w + n_rows * row_size, 0
        if in_order and n_tokens == 1 and n_blocks % 4 == 0:
            rows_in_order(w, 4 * quarter, n_blocks // 4, load_i64(tokens, 0), out)
            done = quarter
        for r in range(done, quarter + n_rows % 4):
            is_left = r >= quarter  # such rows come one by one
            row, stride = (r + 3 * quarter, 0) if is_left else (r, apart)
            # Behind a quarter comes the same quarter of the next rows, which are likely to be next.
            ahead = AHEAD + 3 * apart if not is_left and (r + 1) * row_size + AHEAD > apart else AHEAD
            at = w + row * row_size
            rows_of_tokens(tokens, n_tokens, at, stride, n_blocks, header, ahead, end, sums)
            for t in range(n_tokens):
                place, found = out + t * out_stride + 4 * row, sums + 16 * t
                store_f32(place, 0, load_f32(found, 0))
                if not is_left:
                    for j in range(1, 4):
                        store_f32(place + 4 * j * quarter, 0, load_f32(found, 4 * j))

    return few_tokens
