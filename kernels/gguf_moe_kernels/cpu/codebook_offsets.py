"""Entries of a codebook for few tokens, on CPUs with AVX2 and no AVX-512; large codebooks on Intel's too.

A block's indices become offsets into the table by vector operations, all at once, and go to memory
(*scratch*); from there each is read by one instruction. Signs go to the activations, so that weights have
none and sums of 4 products fit int16: no entry is over 62, no activation over 127.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.bits import negative_where
from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.block_sums import Products
from gguf_moe_kernels.cpu.codebook import constant_bytes
from gguf_moe_kernels.cpu.memory import F64, I8, I16, I32, I64, load_i64, make_store, pointer
from gguf_moe_kernels.cpu.simd import TIER, Tier, dot_unsigned, make_lookup
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import i8x32, i8x64, i16x32, load_i8x64, pick, zero_i32x16

HAS_OFFSETS = TIER in (Tier.AVX2, Tier.AVX2_VNNI)
HAS_LARGE_OFFSETS = HAS_OFFSETS or (TIER is Tier.AVX512 and not Target.numba().is_zen)
"""For IQ1, whose codebook takes 32 lookups in registers: they pay on AMD's CPUs alone. Where gathers are fast
they come first (codebook_gathers.py)."""
SIGNS, SCRATCH_SIZE = 128, 192
"""Where the signs stand, 32 bytes behind 64 offsets of 16 bits, and what a block has in all."""
ENTRY = 12
"""Zero bytes before an entry of 4 weights in its 32 bytes of the table."""

store_i16x32 = make_store(i16x32, i16x32.llvm)
store_i8x32 = make_store(i8x32, i8x32.llvm)
odd_parity = make_lookup(tuple(-128 if i.bit_count() % 2 else 0 for i in range(16)))


def make_eights(entries: np.ndarray, unit: int) -> Callable[..., Any]:
    """An intrinsic eights(offsets): i8x64 of the entries, int8 [n, 8], whose eight u16 offsets stand at an
    address; they count `unit` bytes."""
    return _make_entries(entries.tobytes(), 8, unit, _join_eights)


def make_fours(entries: np.ndarray) -> Callable[..., Any]:
    """An intrinsic fours(offsets): i8x64 of the entries, int8 [n, 4], whose 16 u16 offsets stand at an
    address; they count bytes, 32 for an entry."""
    rows = np.zeros((len(entries), 32), np.int8)
    rows[:, ENTRY : ENTRY + 4] = entries
    return _make_entries(rows.tobytes(), 16, 1, _join_fours)


def _make_entries(content: bytes, n: int, unit: int, join: Callable[..., ir.Value]) -> Callable[..., Any]:
    @intrinsic
    def entries_at(typingctx, offsets):
        def codegen(context, builder, sig, args):
            table, places = builder.ptrtoint(constant_bytes(builder, content), I64), []
            for i in range(n):
                offset = builder.load(pointer(builder, args[0], ir.Constant(I64, 2 * i), I16))
                offset.align = 1
                step = builder.mul(builder.zext(offset, I64), ir.Constant(I64, unit))
                places.append(builder.add(table, step))
            return builder.bitcast(join(builder, places), i8x64.llvm)

        return i8x64(types.int64), codegen

    return entries_at


def _load(builder: ir.IRBuilder, place: ir.Value, offset: int, loaded: ir.Type) -> ir.Value:
    value = builder.load(pointer(builder, place, ir.Constant(I64, offset), loaded))
    value.align = 4
    return value


def _join_eights(builder: ir.IRBuilder, places: list[ir.Value]) -> ir.Value:
    # As float64, because LLVM then loads every second one into the upper half of a register at once.
    joined: ir.Value = ir.Constant(ir.VectorType(F64, 8), ir.Undefined)
    for lane, place in enumerate(places):
        joined = builder.insert_element(joined, _load(builder, place, 0, F64), ir.Constant(I32, lane))
    return joined


def _join_fours(builder: ir.IRBuilder, places: list[ir.Value]) -> ir.Value:
    """An entry has zeros on both sides: read from the right places, four of them only need an OR."""
    four = ir.VectorType(I32, 4)
    quarters = []
    for first in range(0, 16, 4):
        loads = [_load(builder, places[first + i], ENTRY - 4 * i, four) for i in range(4)]
        quarters.append(builder.or_(builder.or_(*loads[:2]), builder.or_(*loads[2:])))
    halves = [pick(builder, quarters[i], range(8), quarters[i + 1]) for i in (0, 2)]
    return pick(builder, halves[0], range(16), halves[1])


def make_field(source: int, per_source: int, factors: list[int], mask: int) -> Callable[..., Any]:
    """An intrinsic field(at): i16x32 whose lane i has the bits `mask` of factors[i % len] times a number of
    `source` bits, that with the index i // per_source at an address, modulo 2^16."""
    element, n = ir.IntType(source), 32 // per_source

    @intrinsic
    def field(typingctx, at):
        def codegen(context, builder, sig, args):
            numbers = builder.load(pointer(builder, args[0], ir.Constant(I64, 0), ir.VectorType(element, n)))
            numbers.align = 1
            wide = numbers if source == 16 else builder.zext(numbers, ir.VectorType(I16, n))
            spread = pick(builder, wide, [i // per_source for i in range(32)])
            constants = (factors * 32)[:32], [mask] * 32
            times_, and_ = (ir.Constant(i16x32.llvm, values) for values in constants)
            return builder.and_(builder.mul(spread, times_), and_)

        return i16x32(types.int64), codegen

    return field


@intrinsic
def even_fours_widened(typingctx, at):
    """Of each eight of 64 bytes at an address the first four, as i16x32."""

    def codegen(context, builder, sig, args):
        bytes_ = builder.load(pointer(builder, args[0], ir.Constant(I64, 0), i8x64.llvm))
        bytes_.align = 1
        fours = pick(builder, bytes_, [8 * (i // 4) + i % 4 for i in range(32)])
        return builder.zext(fours, i16x32.llvm)

    return i16x32(types.int64), codegen


@intrinsic
def low_bytes_of(typingctx, v):
    """The low bytes of an i16x32."""
    return i8x32(i16x32), lambda context, builder, sig, args: builder.trunc(args[0], i8x32.llvm)


@intrinsic
def by_eights(typingctx, eight):
    """Byte i of an int64 in bytes 8i .. 8i + 7 of an i8x64."""

    def codegen(context, builder, sig, args):
        bytes_ = builder.bitcast(args[0], ir.VectorType(I8, 8))
        return pick(builder, bytes_, [i // 8 for i in range(64)])

    return i8x64(types.int64), codegen


@intrinsic
def seven_bits(typingctx, at, step):
    """The four lowest 7-bit fields of eight u32, `step` bytes apart from an address on, a byte each."""

    def codegen(context, builder, sig, args):
        words: ir.Value = ir.Constant(ir.VectorType(I32, 8), ir.Undefined)
        for i in range(8):
            place = builder.mul(args[1], ir.Constant(I64, i))
            word = builder.load(pointer(builder, args[0], place, I32))
            word.align = 1
            words = builder.insert_element(words, word, ir.Constant(I32, i))

        def constant(value: int) -> ir.Constant:
            return ir.Constant(words.type, [value] * 8)

        result = builder.and_(words, constant(0x7F))
        for i in (1, 2, 3):
            moved = builder.shl(words, constant(i))
            result = builder.or_(result, builder.and_(moved, constant(0x7F << 8 * i)))
        return builder.bitcast(result, i8x32.llvm)

    return i8x32(types.int64, types.int64), codegen


@intrinsic
def _folded(typingctx, v):
    """Bytes below 16 with the parity of v's bytes."""

    def codegen(context, builder, sig, args):
        half = builder.lshr(args[0], ir.Constant(i8x32.llvm, [4] * 32))
        return builder.and_(builder.xor(args[0], half), ir.Constant(i8x32.llvm, [15] * 32))

    return i8x32(i8x32), codegen


@njit
def with_even_signs(v):
    """Eight signs from the low seven bits of each byte, whose highest is 0: an even number is 1."""
    return v | odd_parity(_folded(v))


def make_signed_products(
    layout: Layout,
    entries_at: Callable[..., Any],
    prepare: Callable[..., Any],
    n_entries: int = 8,
    signs: int | None = None,
) -> Products:
    """Products with entries whose offsets prepare(w, scratch) puts into scratch, n_entries for 64 weights.

    Their signs, a bit each, stand in scratch, or `signs` bytes behind the block's beginning.
    """
    n_bytes = 2 * n_entries

    @njit
    def products(places, k, x):
        w, scratch = places
        bits = load_i64(scratch, SIGNS + 8 * k) if signs is None else load_i64(w, signs + 8 * k)
        signed_x = negative_where(load_i8x64(x, 0), bits)
        return (dot_unsigned(zero_i32x16(), entries_at(scratch + n_bytes * k), signed_x),)

    unsigned = replace(layout, is_signed=False, offset=0)
    return Products(unsigned, products, _make_begin(prepare), 2 * SCRATCH_SIZE)


def make_shifted_products(
    layout: Layout, entries_at: Callable[..., Any], prepare: Callable[..., Any]
) -> Products:
    """Likewise, with a byte for each entry in the place of signs, which is added to its weights."""

    @njit
    def products(places, k, x):
        _, scratch = places
        q = entries_at(scratch + 16 * k) + by_eights(load_i64(scratch, SIGNS + 8 * k))
        return (dot_unsigned(zero_i32x16(), q, load_i8x64(x, 0)),)

    return Products(layout, products, _make_begin(prepare), 2 * SCRATCH_SIZE)


def _make_begin(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Products.begin: of each block its address, and that of its scratch after prepare(w, scratch)."""

    @njit
    def begin(w, v, scratch):
        other = scratch + SCRATCH_SIZE
        prepare(w, scratch)
        prepare(v, other)
        return (w, scratch), (v, other)

    return begin
