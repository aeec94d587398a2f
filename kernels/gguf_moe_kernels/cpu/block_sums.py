"""The integer sums of one block of 256 weights with one token's activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import SCALES, Layout
from gguf_moe_kernels.cpu.lanes import splat_i32
from gguf_moe_kernels.cpu.memory import I16, I32, load_u32
from gguf_moe_kernels.cpu.simd import dot_pairs, make_spread
from gguf_moe_kernels.cpu.vector import zero_i32x16


def make_one_block(quants: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """one_block(w, header, lane, x0, x1, x2, x3): integer sums of a block, spread over all lanes.

    x0 to x3 are its activations, 64 each; the block's scales stand in `lane` of the header.
    """
    prepared, dot = layout.prepare(quants), layout.dot
    add_scaled, block_scales = make_add_scaled(layout)

    @njit
    def one_block(w, header, lane, x0, x1, x2, x3):
        zero = zero_i32x16()
        total = add_scaled(zero, dot(zero, prepared(w, 0), x0), block_scales(header, lane, 0))
        total = add_scaled(total, dot(zero, prepared(w, 1), x1), block_scales(header, lane, 1))
        total = add_scaled(total, dot(zero, prepared(w, 2), x2), block_scales(header, lane, 2))
        return add_scaled(total, dot(zero, prepared(w, 3), x3), block_scales(header, lane, 3))

    return one_block


def make_add_scaled(layout: Layout) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """add_scaled(total, part, scales), and block_scales(header, lane, k).

    `scales` are those of the 64 weights number k of one block, for each of the 16 sums of 4 products that
    `part` has of them.

    Sums of 4 products stay below 2^15, so that an int16 product does, except where weights have 8 bits.
    """
    group, is_wide = layout.group, layout.is_signed
    form: tuple[int | None, ...]
    if is_wide:
        form, shift, element = (None, None, None, 0), 24, I32
    elif layout.has_signed_scales:
        form, shift, element = (None, 0, None, None), 8, I16
    else:
        form, shift, element = (0, None, None, None), 0, I32
    per_k = 64 // group  # groups in 64 weights
    places = [p if p is None else lane * per_k // 16 for lane in range(16) for p in form]
    spread = make_spread(places, shift, element)

    @njit
    def block_scales(header, lane, k):
        scales = load_u32(header, SCALES + per_k * k // 4 * 64 + 4 * lane) >> (8 * (per_k * k % 4))
        return spread(splat_i32(scales))

    @njit
    def add_scaled(total, part, scales):
        if is_wide:
            return total + part * scales
        return dot_pairs(total, part, scales)

    return add_scaled, block_scales
