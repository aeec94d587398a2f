"""Entries of a codebook from tables in registers, for CPUs with AVX-512 and its permutations of bytes (VBMI).

An entry is a *code* of 16 bits: the numbers of its weights' levels, 8 of two bits or 4 of three. Indices
become codes by permutations of bytes: one looks up 64 indices in 128 entries, so two blocks of 32 indices go
together, and the low and the high bytes of codes have tables of their own. Then a code becomes its weights by
one instruction that shifts every byte on its own, and one that looks the levels up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.bits import add_where, negative_where
from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.block_sums import Products, load_x
from gguf_moe_kernels.cpu.byte_tables import (
    byte_constant,
    eight_bytes,
    from_two,
    look_up,
    make_table,
    mask_of_bit,
    permuted,
    shift_bytes,
)
from gguf_moe_kernels.cpu.memory import load_i64
from gguf_moe_kernels.cpu.simd import dot_unsigned
from gguf_moe_kernels.cpu.vector import (
    call,
    i8x64,
    i16x32,
    store_i8x64,
    zero_i32x16,
)

SEVEN_BITS = [0, 7, 14, 21, 32, 39, 46, 53]
"""Where the four lowest 7-bit fields of two u32 begin."""


def _number_codes(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The codes of int8 [n, width], the levels, and the bits of each of a code's numbers."""
    width = entries.shape[1]
    levels, bits = np.unique(entries), 16 // width - (width == 4)
    return (np.searchsorted(levels, entries) << np.arange(width) * bits).sum(axis=1), levels, bits


def make_codes(
    entries: np.ndarray, firsts: Iterable[int] = range(32), seconds: Iterable[int] = range(32, 64)
) -> Callable[..., Any]:
    """codes_at(indices, eighth, ninth, tenth): of 64 entries of an int8 [n, width] codebook the codes.

    A half is i16x32: of the entries at `firsts`, or of those at `seconds`. The arguments: see `make_table`.
    """
    codes, _, _ = _number_codes(entries)
    low, high = make_table(codes & 255), make_table(codes >> 8)
    first_codes, second_codes = _make_joined(firsts), _make_joined(seconds)

    @njit
    def codes_at(indices, eighth, ninth, tenth):
        low_bytes = low(indices, eighth, ninth, tenth)
        high_bytes = high(indices, eighth, ninth, tenth)
        return first_codes(low_bytes, high_bytes), second_codes(low_bytes, high_bytes)

    return codes_at


def _make_joined(places: Iterable[int]) -> Callable[..., Any]:
    """An intrinsic joined(low, high): 32 codes from their bytes at `places`, as i16x32."""
    from_both = [place + half for place in places for half in (0, 64)]

    @intrinsic
    def joined(typingctx, low, high):
        def codegen(context, builder, sig, args):
            return builder.bitcast(from_two(builder, *args, from_both), i16x32.llvm)

        return i16x32(i8x64, i8x64), codegen

    return joined


def make_codes_of_11_bits(entries: np.ndarray) -> Callable[..., Any]:
    """codes_at(indices, above), as `make_codes` gives them.

    The lowest three bits of the bytes `above` stand above those of `indices`.
    """
    codes_at = make_codes(entries)

    @njit
    def codes_at_11_bits(indices, above):
        return codes_at(indices, mask_of_bit(above, 1), mask_of_bit(above, 2), mask_of_bit(above, 4))

    return codes_at_11_bits


def make_weights(entries: np.ndarray) -> Callable[..., Any]:
    """weights_of(codes, k): the weights of part k of 32 codes of an int8 [n, width] table, as i8x64.

    codes: i16x32, or where the width is 4 two of them. A part is 64 weights.
    """
    width = entries.shape[1]
    _, levels, bits = _number_codes(entries)
    # Two codes of 4 weights, or one of 8, become the 8 bytes of a lane.
    shifts = [code * 16 + i * bits for code in range(8 // width) for i in range(width)]
    table = [levels[min(i % (1 << bits), len(levels) - 1)] for i in range(64)]
    parts = [_make_part(part, width, shifts, table) for part in range(32 * width // 64)]
    first, second, third, fourth = (parts * 4)[:4]

    @njit
    def weights_of_eights(codes, k):
        if k == 0:
            return first(codes)
        if k == 1:
            return second(codes)
        return third(codes) if k == 2 else fourth(codes)

    @njit
    def weights_of_fours(codes, k):
        half = codes[0] if k < 2 else codes[1]
        return first(half) if k % 2 == 0 else second(half)

    return weights_of_eights if width == 8 else weights_of_fours


def _make_part(part: int, width: int, shifts: list[int], table: list[int]) -> Callable[..., Any]:
    """An intrinsic: the weights of part number `part` of 32 codes."""
    per_lane = 8 // width

    @intrinsic
    def weights_of_part(typingctx, codes):
        def codegen(context, builder, sig, args):
            words = builder.bitcast(args[0], ir.VectorType(ir.IntType(16 * per_lane), 32 // per_lane))
            # One permutation: LLVM would take a part out and then widen it.
            places = [8 * part + i // (4 // per_lane) for i in range(32 // per_lane)]
            name = "llvm.x86.avx512.permvar." + ("hi.512" if per_lane == 1 else "si.512")
            lanes = call(builder, name, words.type, (words, ir.Constant(words.type, places)))
            numbers = shift_bytes(builder, builder.bitcast(lanes, i8x64.llvm), shifts)
            # Only the lowest six bits of an index count, and the table repeats itself.
            return permuted(builder, byte_constant(table), numbers)

        return i8x64(i16x32), codegen

    return weights_of_part


def make_quants(
    codes: Callable[..., Any], weights_of: Callable[..., Any], signs: Callable[..., Any]
) -> Callable[..., Any]:
    """A type's quants(w, k) (block.py), signed, from what `products_of_signed_codes` takes."""

    @njit
    def quants(w, k):
        of_w, _ = codes(w, w)
        return negative_where(weights_of(of_w, k), eight_bytes(signs(w, w), k))

    return quants


def products_of_signed_codes(
    layout: Layout, codes: Callable[..., Any], weights_of: Callable[..., Any], signs: Callable[..., Any]
) -> Products:
    """Products of the weights weights_of(c, k), where codes(w, v) gives c for each of two blocks.

    signs(w, v): i8x64 of the signs of w's weights, a bit each, and then of v's. They go to the activations,
    so that weights have none and sums of 4 products fit int16: no entry is over 62, no activation over 127.
    """

    @njit
    def products(shared, k, x):
        codes, signs = shared
        signed_x = negative_where(load_x(x, 0), load_i64(signs, 8 * k))
        return (dot_unsigned(zero_i32x16(), weights_of(codes, k), signed_x),)

    return Products(replace(layout, is_signed=False, offset=0), products, _make_begin(codes, signs), 64)


def products_of_shifted_codes(
    layout: Layout, codes: Callable[..., Any], weights_of: Callable[..., Any], shifts: Callable[..., Any]
) -> Products:
    """Likewise, where a bit in the place of a sign adds 2 to the weight."""

    @njit
    def products(shared, k, x):
        codes, shifts = shared
        weights = add_where(weights_of(codes, k), load_i64(shifts, 8 * k), 2)
        return (dot_unsigned(zero_i32x16(), weights, load_x(x, 0)),)

    return Products(layout, products, _make_begin(codes, shifts), 64)


def _make_begin(codes: Callable[..., Any], signs: Callable[..., Any]) -> Callable[..., Any]:
    """Products.begin. Signs pass through memory, as masks are loaded faster than taken out of a vector."""

    @njit
    def begin(w, v, scratch):
        store_i8x64(scratch, 0, signs(w, v))
        of_w, of_v = codes(w, v)
        return (of_w, scratch), (of_v, scratch + 32)

    return begin


def make_even_signs(shifts: list[int], places: list[int] | None = None) -> Callable[..., Any]:
    """An intrinsic: bytes of eight signs from the seven bits of each eight bytes from bits `shifts` on, of
    which an even number is 1. Byte i of the result is that at places[i]."""
    even = [i | (i.bit_count() & 1) << 7 for i in range(128)]

    @intrinsic
    def even_signs(typingctx, v):
        def codegen(context, builder, sig, args):
            signs = look_up(builder, even, shift_bytes(builder, args[0], shifts))
            return signs if places is None else permuted(builder, signs, byte_constant(places))

        return i8x64(i8x64), codegen

    return even_signs
