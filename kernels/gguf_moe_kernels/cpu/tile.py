"""Tiles: a few rows of one weight matrix against a few rows of activations.

This is the one seam between the quantization types and everything else. A type's `tile` kernel is

    tile(w, row_size, n_rows, n_in, x, x_stride, x_index, n_x, out, out_stride)

    out[t, r] = w[r] . x[x_index[t]]      for r < n_rows, t < n_x

w: address of the first row's bytes, row_size bytes apart; x: activations in the type's format
(activations.py), x_stride bytes apart; x_index: int32 [n_x] or 0 for x[t]; out: float32, rows out_stride
bytes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.block_sums import Products, products_of_quants
from gguf_moe_kernels.cpu.compile import Kernel, kernel
from gguf_moe_kernels.cpu.few_tokens import make_few_tokens, most_tokens
from gguf_moe_kernels.cpu.many_tokens import TOKENS, make_many_tokens
from gguf_moe_kernels.cpu.memory import load_i32, make_stack, store_f32, store_i64

FLOAT_TOKENS = 16
"""Activation rows of float32 that stay in the core's cache while the weight rows pass by."""


def make_float_tile(dot: Callable[..., Any]) -> Kernel:
    """The tile kernel of a float type from its dot(w, x, n) of one row with one row of activations."""

    @njit
    def rows_by_tokens(w, row_size, n_rows, n_in, x, x_stride, x_index, start, stop, out, out_stride):
        for r in range(n_rows):
            for t in range(start, stop):
                i = load_i32(x_index, 4 * t) if x_index else t
                store_f32(out + t * out_stride, 4 * r, dot(w + r * row_size, x + i * x_stride, n_in))

    @kernel
    def tile(w, row_size, n_rows, n_in, x, x_stride, x_index, n_x, out, out_stride):
        for start in range(0, n_x, FLOAT_TOKENS):
            stop = min(start + FLOAT_TOKENS, n_x)
            rows_by_tokens(w, row_size, n_rows, n_in, x, x_stride, x_index, start, stop, out, out_stride)
        return 0

    return tile


def make_tile(
    quants: Callable[..., Any],
    unpack_header: Callable[..., Any],
    layout: Layout,
    meeting: Products | None = None,
) -> Kernel:
    """The tile kernel of a quantized type; its parts are explained in block.py.

    `meeting`: how one token meets its blocks, where there is a faster way than through `quants`.
    """
    few_tokens = make_few_tokens(quants, unpack_header, meeting or products_of_quants(quants, layout))
    many_tokens = make_many_tokens(quants, unpack_header, layout)
    block_size, stack_tokens = layout.block_size, make_stack(8 * TOKENS)
    most = most_tokens(layout)

    @kernel
    def tile(w, row_size, n_rows, n_in, x, x_stride, x_index, n_x, out, out_stride):
        tokens, n_blocks = stack_tokens(), n_in // block_size
        # Few tokens take four blocks of a row at a time, of which at most a quarter may be missing.
        has_fours = n_blocks >= 3 * ((n_blocks + 3) // 4)
        for start in range(0, n_x, TOKENS):
            n_tokens = min(TOKENS, n_x - start)
            for t in range(n_tokens):
                i = load_i32(x_index, 4 * (start + t)) if x_index else start + t
                store_i64(tokens, 8 * t, x + i * x_stride)
            at = out + start * out_stride
            if n_tokens == 1 or (n_tokens <= most and has_fours):
                few_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, at, out_stride)
            else:
                many_tokens(w, row_size, n_rows, n_in, tokens, n_tokens, at, out_stride)
        return 0

    return tile
