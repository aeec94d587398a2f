"""Entries of a codebook from tables in registers, for CPUs with AVX-512 and its permutations of bytes (VBMI).

An entry is a *code* of 16 bits: the numbers of its weights' levels, 8 of two bits or 4 of three. A register
of indices becomes codes by permutations of the table, 64 entries at a time; then a code becomes its weights
by one instruction that shifts every byte on its own, and one that looks the levels up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import I1, I8, I32, I64
from gguf_moe_kernels.cpu.simd import TIER, Tier
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import call, i8x32, i8x64, i16x32, pick

HAS_TABLES = TIER is Tier.AVX512 and "+avx512vbmi" in Target.numba().features.split(",")
I64X8 = ir.VectorType(I64, 8)


def make_weights(entries: np.ndarray) -> Callable[..., Any]:
    """weights_of(indices, k): the weights of part k of 32 entries of an int8 [n, width] table, as i8x64.

    indices: i16x32, below n, which is a power of two. A part is 64 weights.
    """
    width = entries.shape[1]
    levels = np.unique(entries)
    bits = 16 // width - (width == 4)
    numbers = np.searchsorted(levels, entries)
    codes = (numbers << np.arange(width) * bits).sum(axis=1)
    codes_of = _make_codes(codes.tolist())
    # Two codes of 4 weights, or one of 8, become the 8 bytes of a lane.
    shifts = [code * 16 + i * bits for code in range(8 // width) for i in range(width)]
    table = [int(levels[min(i % (1 << bits), len(levels) - 1)]) for i in range(64)]
    parts = [_make_part(part, width, shifts, table) for part in range(32 * width // 64)]
    first, second, third, fourth = (parts * 4)[:4]

    @njit
    def weights_of(indices, k):
        codes = codes_of(indices)
        if k == 0:
            return first(codes)
        if k == 1:
            return second(codes)
        return third(codes) if k == 2 else fourth(codes)

    return weights_of


def _make_codes(codes: list[int]) -> Callable[..., Any]:
    """An intrinsic: of each index its code."""

    @intrinsic
    def codes_of(typingctx, indices):
        def codegen(context, builder, sig, args):
            def table(start: int) -> ir.Constant:
                return ir.Constant(i16x32.llvm, codes[start : start + 32])

            found = []
            for start in range(0, len(codes), 64):
                operands = table(start), args[0], table(start + 32)
                found.append(call(builder, "llvm.x86.avx512.vpermi2var.hi.512", i16x32.llvm, operands))
            bit = 64
            while len(found) > 1:
                is_upper = _has_bit(builder, args[0], bit)
                pairs = zip(found[::2], found[1::2], strict=True)
                found = [builder.select(is_upper, upper, lower) for lower, upper in pairs]
                bit *= 2
            return found[0]

        return i16x32(i16x32), codegen

    return codes_of


def _has_bit(builder: ir.IRBuilder, v: ir.Value, bit: int) -> ir.Value:
    masked = builder.and_(v, ir.Constant(v.type, [bit] * v.type.count))
    return builder.icmp_unsigned("!=", masked, ir.Constant(v.type, [0] * v.type.count))


def _make_part(part: int, width: int, shifts: list[int], table: list[int]) -> Callable[..., Any]:
    """An intrinsic: the weights of part number `part` of 32 codes."""
    per_lane = 8 // width

    @intrinsic
    def weights_of_part(typingctx, codes):
        def codegen(context, builder, sig, args):
            element = ir.IntType(16 * per_lane)
            words = builder.bitcast(args[0], ir.VectorType(element, 32 // per_lane))
            # One permutation: LLVM would take a part out and then widen it.
            places = [8 * part + i // (4 // per_lane) for i in range(32 // per_lane)]
            name = "llvm.x86.avx512.permvar." + ("hi.512" if per_lane == 1 else "si.512")
            lanes = call(builder, name, words.type, (words, ir.Constant(words.type, places)))
            numbers = _shift_bytes(builder, lanes, shifts)
            # Only the lowest six bits of an index count, and the table repeats itself.
            values = ir.Constant(i8x64.llvm, table)
            return call(builder, "llvm.x86.avx512.permvar.qi.512", i8x64.llvm, (values, numbers))

        return i8x64(i16x32), codegen

    return weights_of_part


def _shift_bytes(builder: ir.IRBuilder, lanes: ir.Value, shifts: list[int]) -> ir.Value:
    """Byte i of each i64 lane is eight bits of the lane, from bit shifts[i] on."""
    control = ir.Constant(i8x64.llvm, shifts * 8)
    data = builder.bitcast(lanes, i8x64.llvm)
    return call(builder, "llvm.x86.avx512.pmultishift.qb.512", i8x64.llvm, (control, data))


@intrinsic
def widened(typingctx, v):
    """32 bytes as i16x32."""
    return i16x32(i8x32), lambda context, builder, sig, args: builder.zext(args[0], i16x32.llvm)


@intrinsic
def low_bytes(typingctx, v):
    """The low bytes of an i16x32."""
    return i8x32(i16x32), lambda context, builder, sig, args: builder.trunc(args[0], i8x32.llvm)


@intrinsic
def even_fours(typingctx, v):
    """Of each eight bytes the first four."""

    def codegen(context, builder, sig, args):
        fours = builder.bitcast(args[0], ir.VectorType(I32, 16))
        return builder.bitcast(pick(builder, fours, range(0, 16, 2)), i8x32.llvm)

    return i8x32(i8x64), codegen


@intrinsic
def in_eights(typingctx, v):
    """Eight times four bytes, each with four zero bytes behind."""

    def codegen(context, builder, sig, args):
        lanes = builder.zext(builder.bitcast(args[0], ir.VectorType(I32, 8)), I64X8)
        return builder.bitcast(lanes, i8x64.llvm)

    return i8x64(i8x32), codegen


def make_fields(first: int) -> Callable[..., Any]:
    """An intrinsic: of each eight bytes the four 7-bit fields from bit `first` on, a byte each, as signs of
    which an even number of eight is 1."""
    shifts = [first + 7 * (i % 4) for i in range(8)]

    @intrinsic
    def fields(typingctx, v):
        def codegen(context, builder, sig, args):
            moved = _shift_bytes(builder, builder.bitcast(args[0], I64X8), shifts)
            fours = pick(builder, builder.bitcast(moved, ir.VectorType(I32, 16)), range(0, 16, 2))
            return _even_signs(builder, builder.bitcast(fours, i8x32.llvm))

        return i8x32(i8x64), codegen

    return fields


@intrinsic
def even_signs_of_bytes(typingctx, v):
    """Eight signs from the low seven bits of each byte: an even number is 1."""
    return i8x32(i8x32), lambda context, builder, sig, args: _even_signs(builder, args[0])


def _even_signs(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    seven = builder.and_(v, ir.Constant(v.type, [0x7F] * 32))
    count = call(builder, "llvm.ctpop.v32i8", v.type, [seven])
    return builder.or_(seven, builder.shl(count, ir.Constant(v.type, [7] * 32)))


@intrinsic
def eight_bytes(typingctx, v, k):
    """Bytes 8k .. 8k + 7 of an i8x32 as int64."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(builder.bitcast(args[0], ir.VectorType(I64, 4)), args[1])

    return types.int64(i8x32, types.int64), codegen


@intrinsic
def pairs_of_bits(typingctx, packed):
    """Bits 2i and 2i + 1 of byte j of an int64 as bits 8 and 9 of the lane 4j + i of an i16x32."""

    def codegen(context, builder, sig, args):
        lanes = builder.zext(builder.bitcast(args[0], ir.VectorType(I8, 8)), I64X8)
        moved = _shift_bytes(builder, lanes, [32, 0, 32, 2, 32, 4, 32, 6])
        words = builder.bitcast(moved, i16x32.llvm)
        return builder.and_(words, ir.Constant(i16x32.llvm, [0x300] * 32))

    return i16x32(types.int64), codegen


@intrinsic
def ninth_bits(typingctx, packed):
    """Bit i of the low 32 of an int64 as bit 8 of lane i of an i16x32."""

    def codegen(context, builder, sig, args):
        mask = builder.bitcast(builder.trunc(args[0], I32), ir.VectorType(I1, 32))
        on, off = (ir.Constant(i16x32.llvm, [value] * 32) for value in (256, 0))
        return builder.select(mask, on, off)

    return i16x32(types.int64), codegen
