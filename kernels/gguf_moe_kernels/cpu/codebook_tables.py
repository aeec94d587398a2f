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
from numba import njit, types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.bits import mask_of, negative_where
from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.block_sums import Products
from gguf_moe_kernels.cpu.memory import I8, I32, I64, load_i64
from gguf_moe_kernels.cpu.simd import TIER, Tier, dot_unsigned
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import (
    call,
    i8x64,
    i16x32,
    load_i8x64,
    pick,
    splat,
    store_i8x64,
    zero_i32x16,
)

HAS_TABLES = TIER is Tier.AVX512 and "+avx512vbmi" in Target.numba().features.split(",")
I64X8 = ir.VectorType(I64, 8)
SEVEN_BITS = [0, 7, 14, 21, 32, 39, 46, 53]
"""Where the four lowest 7-bit fields of two u32 begin."""


def _constant(values: Iterable[int]) -> ir.Constant:
    return ir.Constant(i8x64.llvm, [int(value) for value in values])


def _look_up(builder: ir.IRBuilder, table: Any, indices: ir.Value) -> ir.Value:
    """Of 128 bytes those at the low seven bits of each byte."""
    operands = _constant(table[:64]), indices, _constant(table[64:])
    return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", i8x64.llvm, operands)


def _permuted(builder: ir.IRBuilder, v: ir.Value, places: ir.Value) -> ir.Value:
    """The bytes of v at the low six bits of each of `places`."""
    return call(builder, "llvm.x86.avx512.permvar.qi.512", i8x64.llvm, (v, places))


def _shift_bytes(builder: ir.IRBuilder, v: ir.Value, shifts: list[int]) -> ir.Value:
    """Byte i of each eight becomes eight bits of the eight, from bit shifts[i] on."""
    operands = _constant(shifts * (64 // len(shifts))), v
    return call(builder, "llvm.x86.avx512.pmultishift.qb.512", i8x64.llvm, operands)


def _number_codes(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The codes of int8 [n, width], the levels, and the bits of each of a code's numbers."""
    width = entries.shape[1]
    levels, bits = np.unique(entries), 16 // width - (width == 4)
    return (np.searchsorted(levels, entries) << np.arange(width) * bits).sum(axis=1), levels, bits


def make_codes(entries: np.ndarray) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two intrinsics, low and high: of 64 indices that byte of their codes in an int8 [n, width] table.

    low(indices, eighth, ninth, tenth): i8x64 of the low eight bits of indices, and bit masks of the others as
    int64, as far as n, a power of two, has them.
    """
    codes, _, _ = _number_codes(entries)
    return _make_byte_of_code(codes & 255), _make_byte_of_code(codes >> 8)


def _make_byte_of_code(table: np.ndarray) -> Callable[..., Any]:
    @intrinsic
    def byte_of_code(typingctx, indices, eighth, ninth, tenth):
        def codegen(context, builder, sig, args):
            found = [_look_up(builder, table[i : i + 128], args[0]) for i in range(0, len(table), 128)]
            is_upper = builder.icmp_signed("<", args[0], _constant([0] * 64))
            for bits in args[1:]:
                pairs = zip(found[::2], found[1::2], strict=True)
                found = [builder.select(is_upper, upper, lower) for lower, upper in pairs]
                if len(found) == 1:
                    return found[0]
                is_upper = mask_of(builder, bits, 64)
            return builder.select(is_upper, found[1], found[0])

        return i8x64(i8x64, types.int64, types.int64, types.int64), codegen

    return byte_of_code


def make_joined(places: list[int]) -> Callable[..., Any]:
    """An intrinsic joined(low, high): 32 codes from their bytes at `places`, as i16x32."""
    from_both = _constant(place + half for place in places for half in (0, 64))

    @intrinsic
    def joined(typingctx, low, high):
        def codegen(context, builder, sig, args):
            operands = args[0], from_both, args[1]
            result = call(builder, "llvm.x86.avx512.vpermi2var.qi.512", i8x64.llvm, operands)
            return builder.bitcast(result, i16x32.llvm)

        return i16x32(i8x64, i8x64), codegen

    return joined


first_codes, second_codes = make_joined([*range(32)]), make_joined([*range(32, 64)])


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
            numbers = _shift_bytes(builder, builder.bitcast(lanes, i8x64.llvm), shifts)
            # Only the lowest six bits of an index count, and the table repeats itself.
            return _permuted(builder, _constant(table), numbers)

        return i8x64(i16x32), codegen

    return weights_of_part


def make_quants(
    codes: Callable[..., Any], weights_of: Callable[..., Any], signs: Callable[..., Any]
) -> Callable[..., Any]:
    """A type's quants(w, k) (block.py), signed, from what `make_products` takes."""

    @njit
    def quants(w, k):
        of_w, _ = codes(w, w)
        return negative_where(weights_of(of_w, k), eight_bytes(signs(w, w), k))

    return quants


def make_products(
    layout: Layout, codes: Callable[..., Any], weights_of: Callable[..., Any], signs: Callable[..., Any]
) -> Products:
    """Products of the weights weights_of(c, k), where codes(w, v) gives c for each of two blocks.

    signs(w, v): i8x64 of the signs of w's weights, a bit each, and then of v's. They go to the activations,
    so that weights have none and sums of 4 products fit int16: no entry is over 62, no activation over 127.
    They pass through scratch, because masks are loaded faster than taken out of a vector.
    """

    @njit
    def begin(w, v, scratch):
        store_i8x64(scratch, 0, signs(w, v))
        of_w, of_v = codes(w, v)
        return (of_w, scratch), (of_v, scratch + 32)

    @njit
    def products(shared, k, x):
        codes, signs = shared
        signed_x = negative_where(load_i8x64(x, 0), load_i64(signs, 8 * k))
        return dot_unsigned(zero_i32x16(), weights_of(codes, k), signed_x)

    return Products(replace(layout, is_signed=False, offset=0), products, begin, scratch_size=64)


@intrinsic
def eight_bytes(typingctx, v, k):
    """Bytes 8k .. 8k + 7 of an i8x64 as int64."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(builder.bitcast(args[0], I64X8), args[1])

    return types.int64(i8x64, types.int64), codegen


def _make_fours(first: int) -> Callable[..., Any]:
    @intrinsic
    def fours(typingctx, v, w):
        def codegen(context, builder, sig, args):
            v, w = (builder.bitcast(each, ir.VectorType(I32, 16)) for each in args)
            both = pick(builder, v, [lane + source for lane in range(first, 16, 2) for source in (0, 16)], w)
            return builder.bitcast(both, i8x64.llvm)

        return i8x64(i8x64, i8x64), codegen

    return fours


even_fours, odd_fours = _make_fours(0), _make_fours(1)
"""Of each eight bytes of two i8x64 the first four, or the last: one of v, one of w, and so on."""


def make_even_signs(shifts: list[int], places: list[int] | None = None) -> Callable[..., Any]:
    """An intrinsic: bytes of eight signs from the seven bits of each eight bytes from bits `shifts` on, of
    which an even number is 1. Byte i of the result is that at places[i]."""
    even = [i | (i.bit_count() & 1) << 7 for i in range(128)]

    @intrinsic
    def even_signs(typingctx, v):
        def codegen(context, builder, sig, args):
            signs = _look_up(builder, even, _shift_bytes(builder, args[0], shifts))
            return signs if places is None else _permuted(builder, signs, _constant(places))

        return i8x64(i8x64), codegen

    return even_signs


def _make_every_second(first: int) -> Callable[..., Any]:
    places = _constant(range(first, 128, 2))

    @intrinsic
    def every_second(typingctx, v, w):
        def codegen(context, builder, sig, args):
            operands = args[0], places, args[1]
            return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", i8x64.llvm, operands)

        return i8x64(i8x64, i8x64), codegen

    return every_second


even_bytes, odd_bytes = _make_every_second(0), _make_every_second(1)
"""Of two i8x64 every second byte, first those of v."""


@intrinsic
def pairs_of_bits(typingctx, v, w):
    """Bits 2i and 2i + 1 of an int64 as the lowest bits of byte i, and those of another of byte 32 + i."""

    def codegen(context, builder, sig, args):
        both = (splat(builder, value, 4) for value in args)
        eights = builder.bitcast(pick(builder, next(both), range(8), next(both)), i8x64.llvm)
        return _shift_bytes(builder, eights, [*range(0, 64, 2)])

    return i8x64(types.int64, types.int64), codegen


@intrinsic
def mask_of_bit(typingctx, v, bit):
    """A mask as int64: in which bytes `bit`, a power of two, is set."""

    def codegen(context, builder, sig, args):
        own = builder.and_(args[0], splat(builder, builder.trunc(args[1], I8), 64))
        return builder.bitcast(builder.icmp_unsigned("!=", own, _constant([0] * 64)), I64)

    return types.int64(i8x64, types.int64), codegen
