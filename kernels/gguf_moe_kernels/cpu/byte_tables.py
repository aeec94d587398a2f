"""Permutations of bytes by AVX-512 with VBMI: tables in registers, fields of bits, bytes of two vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.bits import mask_of
from gguf_moe_kernels.cpu.memory import I8, I32, I64
from gguf_moe_kernels.cpu.simd import TIER, Tier
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import call, i8x32, i8x64, pick, splat

HAS_TABLES = TIER is Tier.AVX512 and Target.numba().has("avx512vbmi")
I64X8 = ir.VectorType(I64, 8)


def byte_constant(values: Iterable[int]) -> ir.Constant:
    return ir.Constant(i8x64.llvm, [int(value) for value in values])


def look_up(builder: ir.IRBuilder, table: Any, indices: ir.Value) -> ir.Value:
    """Of 128 bytes those at the low seven bits of each byte."""
    operands = byte_constant(table[:64]), indices, byte_constant(table[64:])
    return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", i8x64.llvm, operands)


def from_two(builder: ir.IRBuilder, v: ir.Value, w: ir.Value, places: Iterable[int]) -> ir.Value:
    """The bytes at `places` of v, and then w: by one instruction."""
    operands = v, byte_constant(places), w
    return call(builder, "llvm.x86.avx512.vpermi2var.qi.512", i8x64.llvm, operands)


def permuted(builder: ir.IRBuilder, v: ir.Value, places: ir.Value) -> ir.Value:
    """The bytes of v at the low six bits of each of `places`."""
    return call(builder, "llvm.x86.avx512.permvar.qi.512", i8x64.llvm, (v, places))


def shift_bytes(builder: ir.IRBuilder, v: ir.Value, shifts: list[int]) -> ir.Value:
    """Byte i of each eight becomes eight bits of the eight, from bit shifts[i] on."""
    operands = byte_constant(shifts * (64 // len(shifts))), v
    return call(builder, "llvm.x86.avx512.pmultishift.qb.512", i8x64.llvm, operands)


def make_table(table: np.ndarray) -> Callable[..., Any]:
    """An intrinsic at(indices, eighth, ninth, tenth): the bytes of a table at 64 indices.

    indices: i8x64 of their low eight bits; the others are bit masks, int64, as far as the table's length, a
    power of two, has them.
    """

    @intrinsic
    def at(typingctx, indices, eighth, ninth, tenth):
        def codegen(context, builder, sig, args):
            found = [look_up(builder, table[i : i + 128], args[0]) for i in range(0, len(table), 128)]
            is_upper = builder.icmp_signed("<", args[0], byte_constant([0] * 64))
            for bits in args[1:]:
                pairs = zip(found[::2], found[1::2], strict=True)
                found = [builder.select(is_upper, upper, lower) for lower, upper in pairs]
                if len(found) == 1:
                    return found[0]
                is_upper = mask_of(builder, bits, 64)
            return builder.select(is_upper, found[1], found[0])

        return i8x64(i8x64, types.int64, types.int64, types.int64), codegen

    return at


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


def _make_every_second(first: int) -> Callable[..., Any]:
    @intrinsic
    def every_second(typingctx, v, w):
        def codegen(context, builder, sig, args):
            return from_two(builder, *args, range(first, 128, 2))

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
        return shift_bytes(builder, eights, [*range(0, 64, 2)])

    return i8x64(types.int64, types.int64), codegen


@intrinsic
def mask_of_bit(typingctx, v, bit):
    """A mask as int64: in which bytes `bit`, a power of two, is set."""

    def codegen(context, builder, sig, args):
        own = builder.and_(args[0], splat(builder, builder.trunc(args[1], I8), 64))
        return builder.bitcast(builder.icmp_unsigned("!=", own, byte_constant([0] * 64)), I64)

    return types.int64(i8x64, types.int64), codegen


def make_fields(shifts: list[int]) -> Callable[..., Any]:
    """An intrinsic: byte 8j + i of the result is the eight bits of u32 number j from bit shifts[i] on."""

    @intrinsic
    def fields(typingctx, v):
        def codegen(context, builder, sig, args):
            wide = builder.zext(builder.bitcast(args[0], ir.VectorType(I32, 8)), I64X8)
            return shift_bytes(builder, builder.bitcast(wide, i8x64.llvm), shifts)

        return i8x64(i8x32), codegen

    return fields


@intrinsic
def all_bits_without(typingctx, v, bit):
    """All bits of the bytes that do not have `bit`, an int64; no bits of others."""

    def codegen(context, builder, sig, args):
        own = builder.and_(args[0], splat(builder, builder.trunc(args[1], I8), 64))
        return builder.sext(builder.icmp_unsigned("==", own, byte_constant([0] * 64)), i8x64.llvm)

    return i8x64(i8x64, types.int64), codegen
