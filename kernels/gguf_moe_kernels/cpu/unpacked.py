"""Blocks of ROWS rows unpacked for many tokens, one lane a row, while what comes is asked for.

An *unpacked block* in memory, always with ROWS lanes:

    QUANTS     int32 [64]    4 weights each; in types of 32 weights [8], and behind it those of the next block
    SCALES     int32 [16]    of each group (Layout.make_group_scale); only in types of 256 weights
    PAIRS      int32 [8]     of each 32 weights the factors of the sums of their activations; likewise
    FACTORS    float32 [2]   the header's D and DMIN; in types of 32 weights behind it those of the next block

The rows are read in parts of 16, because that many share a header (block.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import DMIN, D, Layout, stack_header
from gguf_moe_kernels.cpu.lanes import transpose
from gguf_moe_kernels.cpu.memory import ask_for, ask_for_later, load_i64, make_stack, store_i64
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.tokens import LANES_SIZE, ROWS
from gguf_moe_kernels.cpu.vector import load_f32x16, store_f32x16, store_i8x64, store_i32x16

PARTS = ROWS // 16
IS_ZEN = Target.numba().is_zen
LONG_ROW = sys.maxsize if IS_ZEN else 3328
"""Bytes. Rows at least so long are asked for each by itself, AHEAD bytes before they are read. Shorter ones
come in the order of memory, while the ROWS rows before them are read."""
AHEAD = 288
ask_for_rows = ask_for if IS_ZEN else ask_for_later
"""Where other cores than Zen want what comes in the order of memory: the rows before fill the first cache."""

QUANTS = 0
SCALES = QUANTS + 64 * LANES_SIZE
PAIRS = SCALES + 16 * LANES_SIZE
FACTORS = PAIRS + 8 * LANES_SIZE
UNPACKED_SIZE = FACTORS + 4 * LANES_SIZE


def make_unpack(
    quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout
) -> Callable[..., Any]:
    """unpack(starts, row_size, offset, n, unpacked): the block at `offset` of each row; n small ones.

    The rows begin at the addresses `starts`, 16 from each on.
    """
    type_size, is_large, has_minimum = layout.type_size, layout.is_large, layout.has_minimum
    has_dmin, header_place = has_minimum or layout.has_two_scales, layout.make_header_place()
    prepared, pair, group_scale = layout.prepare(quants), layout.make_pair(), layout.make_group_scale()
    n_groups, has_pairs = layout.block_size // layout.group, bool(layout.whole_offset or has_minimum)
    stack_rows, stack_places = make_stack(16 * 64), make_stack(32)
    # Bytes that are asked for with 64 weights of a row.
    n_ahead = -(-type_size // 4) if is_large else 2 * type_size

    @njit
    def unpack_factors(w, row_size, header, to):
        """d and dmin of 16 rows; the header stays for what else is needed of it."""
        places = stack_places()
        for i in range(4):
            store_i64(places, 8 * i, w + 4 * i * row_size)
        unpack_header(places, row_size, header)
        store_f32x16(to, 0, load_f32x16(header, D))
        if has_dmin:
            store_f32x16(to, LANES_SIZE, load_f32x16(header, DMIN))

    @njit
    def unpack_quants(w, row_size, k, rows, next_, to):
        """64 weights of 16 rows, 4 in each lane. k: see Layout.prepare.

        Meanwhile what comes is asked for, from next_ on: in the order of memory, or of each of 16 long rows.
        """
        for r in range(16):
            if row_size >= LONG_ROW:
                ask_for(next_ + r * row_size, n_ahead)
            else:
                ask_for_rows(next_ + r * n_ahead, n_ahead)
            store_i8x64(rows, 64 * r, prepared(w + r * row_size, k))
        transpose(rows, to, LANES_SIZE)

    @njit
    def unpack_large(w, row_size, header, rows, next_, to):
        unpack_factors(w, row_size, header, to + FACTORS)
        for j in range(n_groups):
            store_i32x16(to, SCALES + LANES_SIZE * j, group_scale(header, j))
        if has_pairs:
            for j in range(8):
                store_i32x16(to, PAIRS + LANES_SIZE * j, pair(header, j))
        step = n_ahead if row_size >= LONG_ROW else 16 * n_ahead
        for k in range(4):
            unpack_quants(w, row_size, k, rows, next_ + step * k, to + 16 * LANES_SIZE * k)

    @njit
    def next_place(start, row_size, offset):
        """What to ask for first while the block at `offset` of rows from `start` on is unpacked."""
        if row_size < LONG_ROW:
            return start + ROWS * row_size + 16 * offset
        # Behind the end of a row comes the beginning of the one ROWS rows behind it.
        return start + offset + AHEAD + (offset + AHEAD >= row_size) * (ROWS - 1) * row_size

    @njit
    def unpack(starts, row_size, offset, n, unpacked):
        header, rows = stack_header(), stack_rows()
        for part in range(PARTS):
            start, to = load_i64(starts, 8 * part), unpacked + 64 * part
            w, next_ = start + offset, next_place(start, row_size, offset)
            if is_large:
                unpack_large(w, row_size, header, rows, next_, to)
            else:
                unpack_quants(w, row_size, type_size * (n - 1), rows, next_, to)
                for i in range(n):
                    unpack_factors(header_place(w, i), row_size, header, to + FACTORS + 2 * LANES_SIZE * i)

    return unpack
