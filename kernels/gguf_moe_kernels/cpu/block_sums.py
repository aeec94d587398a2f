"""The integer sums of two blocks of 256 weights with one token's activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import SCALES, Layout
from gguf_moe_kernels.cpu.lanes import fold_two, splat_i64
from gguf_moe_kernels.cpu.memory import I16, I32, load_i64
from gguf_moe_kernels.cpu.simd import dot_pairs, make_spread, pack_fours
from gguf_moe_kernels.cpu.vector import zero_i32x16


def make_two_blocks(quants: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """two_blocks(w, v, header, lane, x0, x1, x2, x3, y0, y1, y2, y3): integer sums of the blocks at w and v.

    In each four lanes of the result the first two add up to a part of w's sum, the others to one of v's.
    x0 to x3 are the activations for w, 64 each, y0 to y3 those for v; the scales of w stand in `lane` of the
    header, an even one, those of v in the next.
    """
    prepared, dot = layout.prepare(quants), layout.dot
    scaled, scales_of_two = make_scaled(layout), make_scales_of_two(layout)

    @njit
    def two_blocks(w, v, header, lane, x0, x1, x2, x3, y0, y1, y2, y3):
        zero = zero_i32x16()
        a, b = dot(zero, prepared(w, 0), x0), dot(zero, prepared(v, 0), y0)
        total = scaled(zero, a, b, scales_of_two(header, lane, 0))
        a, b = dot(zero, prepared(w, 1), x1), dot(zero, prepared(v, 1), y1)
        total = scaled(total, a, b, scales_of_two(header, lane, 1))
        a, b = dot(zero, prepared(w, 2), x2), dot(zero, prepared(v, 2), y2)
        total = scaled(total, a, b, scales_of_two(header, lane, 2))
        a, b = dot(zero, prepared(w, 3), x3), dot(zero, prepared(v, 3), y3)
        return scaled(total, a, b, scales_of_two(header, lane, 3))

    return two_blocks


def make_scaled(layout: Layout) -> Callable[..., Any]:
    """scaled(total, a, b, scales): total plus a and b times their scales; in each lane of a and b is a sum of
    4 products, of 64 weights of one block each.

    Sums of 4 products stay below 2^15, so that those of both blocks go into one vector of int16, except where
    weights have 8 bits.
    """
    is_wide = layout.is_signed

    @njit
    def scaled(total, a, b, scales):
        if is_wide:
            return total + fold_two(a, b) * scales
        return dot_pairs(total, pack_fours(a, b), scales)

    return scaled


def make_scales_of_two(layout: Layout) -> Callable[..., Any]:
    """scales_of_two(header, lane, k): the scales of the 64 weights number k of two blocks, where `scaled`
    needs them: int16 of each lane's pair, or int32 where weights have 8 bits."""
    is_wide, is_signed, per_k = layout.is_signed, layout.has_signed_scales, 64 // layout.group
    element, size = (I32, 4) if is_wide else (I16, 2)
    is_high = is_wide or is_signed  # the byte comes to the element's top, and down again with its sign

    def places(first: int) -> list[int | None]:
        """Of each element the scale's byte; `first` is that of the first group."""
        bytes_: list[int | None] = []
        for lane in range(16):
            place = lane % 4 // 2 * 4 + first + lane // 4 * per_k // 4
            of_element = [None] * (size - 1) + [place] if is_high else [place] + [None] * (size - 1)
            bytes_ += of_element * (4 // size)
        return bytes_

    shift = 8 * (size - 1) if is_high else 0
    even, odd = (make_spread(places(per_k * k % 4), shift, element) for k in (0, 1))

    @njit
    def scales_of_two(header, lane, k):
        scales = splat_i64(load_i64(header, SCALES + per_k * k // 4 * 64 + 4 * lane))
        return odd(scales) if k % 2 else even(scales)

    return scales_of_two
