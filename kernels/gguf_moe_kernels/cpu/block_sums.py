"""The integer sums of two blocks of 256 weights with the activations of a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.block import SCALES, Layout
from gguf_moe_kernels.cpu.each import each
from gguf_moe_kernels.cpu.lanes import fold_two, splat_i64, splat_two_i64
from gguf_moe_kernels.cpu.memory import I16, I32, keep_order, load_i64, make_load, make_stack, opaque
from gguf_moe_kernels.cpu.simd import TIER, Tier, dot_pairs, make_spread, pack_fours
from gguf_moe_kernels.cpu.vector import i8x64, zero_i32x16

load_x = make_load(i8x64, i8x64.llvm, is_constant=TIER is Tier.AVX512)
"""64 activations. With AVX-512 there are registers to keep them for several rows of weights."""


@dataclass(frozen=True)
class Products:
    """How a token meets a type's large blocks, two at a time.

    First begin(w, v, scratch), which gives for each of the two blocks what its parts share; it may use
    `scratch_size` bytes of memory. Then products(shared, k, x): of the block's k-th `part` weights with as
    many int8 at x the sums of 4 products, or 8: a tuple of one i32x16, or of two that have the same scales.
    Unless the layout's weights are signed, each sum is less than 2^15.
    """

    layout: Layout
    """The weights as these products see them: offset and signs may differ from those of `quants`."""
    products: Callable[..., Any]
    begin: Callable[..., Any]
    scratch_size: int = 0
    part: int = 64
    """Weights that meet at once: 64 or 128."""
    n_sums: int = 1
    """Vectors of their sums."""


def products_of_quants(quants: Callable[..., Any], layout: Layout) -> Products:
    """The products of bytes that `quants` makes."""
    prepared, dot = layout.prepare(quants), layout.dot

    @njit
    def products(w, k, x):
        return (dot(zero_i32x16(), prepared(w, k), load_x(x, 0)),)

    @njit
    def begin(w, v, scratch):
        return w, v

    return Products(layout, products, begin)


def make_two_blocks(meeting: Products) -> Callable[..., Any]:
    """two_blocks(w, v, header, lane, xs, q, p): of each token the integer sums of the blocks at w and v.

    In each four lanes of a result the first two add up to a part of w's sum, the others to one of v's.
    xs: the addresses of the tokens' activations; those for w stand at q, those for v at p. The scales of w
    are in `lane` of the header, an even one, those of v in the next.
    """
    products, begin, needs_scratch = meeting.products, meeting.begin, meeting.scratch_size > 0
    part, has_two_sums = meeting.part, meeting.n_sums == 2
    scaled, scales_of_two = make_scaled(meeting.layout), make_scales_of_two(meeting)
    stack_scratch = make_stack(meeting.scratch_size)

    @njit
    def zero(shared, t, x):
        return zero_i32x16()

    @njit
    def add_part(shared, t, total, x):
        first, second, k, q, p, scales = shared
        a, b = products(first, k, x + q + part * k), products(second, k, x + p + part * k)
        total = scaled(total, a[0], b[0], scales)
        return scaled(total, a[1], b[1], scales) if has_two_sums else total

    @njit
    def two_blocks(w, v, header, lane, xs, q, p):
        scratch = opaque(stack_scratch()) if needs_scratch else 0
        first, second = begin(w, v, scratch)
        if needs_scratch:
            keep_order()  # so that what was put there is loaded, not taken out of registers
        totals = each(zero, 0, xs)
        totals = each(add_part, (first, second, 0, q, p, scales_of_two(header, lane, 0)), totals, xs)
        totals = each(add_part, (first, second, 1, q, p, scales_of_two(header, lane, 1)), totals, xs)
        if part == 64:
            totals = each(add_part, (first, second, 2, q, p, scales_of_two(header, lane, 2)), totals, xs)
            totals = each(add_part, (first, second, 3, q, p, scales_of_two(header, lane, 3)), totals, xs)
        return totals

    return two_blocks


def make_scaled(layout: Layout) -> Callable[..., Any]:
    """scaled(total, a, b, scales): total plus a and b times their scales; in each lane of a and b is a sum of
    products, of one block each.

    Those below 2^15 of both blocks go into one vector of int16.
    """
    is_wide = layout.is_signed

    @njit
    def scaled(total, a, b, scales):
        if is_wide:
            return total + fold_two(a, b) * scales
        return dot_pairs(total, pack_fours(a, b), scales)

    return scaled


def make_scales_of_two(meeting: Products) -> Callable[..., Any]:
    """scales_of_two(header, lane, k): the scales of part k of two blocks, where `scaled` needs them: int16 of
    each lane's pair, or int32 where weights have 8 bits."""
    layout, part = meeting.layout, meeting.part
    is_wide, is_signed, per_part = layout.is_signed, layout.has_signed_scales, part // layout.group
    element, size = (I32, 4) if is_wide else (I16, 2)
    is_high = is_wide or is_signed  # the byte comes to the element's top, and down again with its sign

    def places(first: int) -> list[int | None]:
        """Of each element the scale's byte; `first` is that of the first group."""
        bytes_: list[int | None] = []
        for lane in range(16):
            weight = part // 4 * (lane // 4) + part // 8 * (lane % 2)
            place = lane % 4 // 2 * 4 + (first + weight // layout.group) % 4
            of_element = [None] * (size - 1) + [place] if is_high else [place] + [None] * (size - 1)
            bytes_ += of_element * (4 // size)
        return bytes_

    shift = 8 * (size - 1) if is_high else 0
    even, odd = (make_spread(places(per_part * k % 4), shift, element) for k in (0, 1))

    @njit
    def scales_of_two(header, lane, k):
        at = header + SCALES + per_part * k // 4 * 64 + 4 * lane
        if per_part == 8:
            scales = splat_two_i64(load_i64(at, 0), load_i64(at, 64))
        else:
            scales = splat_i64(load_i64(at, 0))
        return odd(scales) if k % 2 else even(scales)

    return scales_of_two
