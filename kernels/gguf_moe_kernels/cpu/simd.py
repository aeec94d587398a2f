"""Dot products and lookups of bytes, by the instructions that the CPU has.

A *tier* is the set of instructions for the dot product of bytes. It follows from the CPU that Numba compiles
for, and with it the width of the registers that LLVM splits the 512 bits of a vector into:

    AVX512     vpdpbusd on 512 bits (AVX-512 with VNNI)
    AVX2_VNNI  vpdpbusd on 256 bits
    AVX2       vpmaddubsw and vpmaddwd on 256 bits
    PORTABLE   plain LLVM operations on 128 bits

All of them give the same integers. No other tier's instruction is ever emitted: LLVM would end the process.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import I16, I32
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import call, i8x32, i8x64, i16x32, i32x16, pick


class Tier(enum.Enum):
    """Instructions for dot products of bytes: their name, and the width of their registers in bits."""

    AVX512 = ("vnni", 512)
    AVX2_VNNI = ("vnni", 256)
    AVX2 = ("maddubs", 256)
    PORTABLE = ("plain", 128)

    @property
    def register_bits(self) -> int:
        return self.value[1]

    @property
    def has_vnni(self) -> bool:
        return self.value[0] == "vnni"

    @staticmethod
    def of(features: set[str]) -> Tier:
        """The best tier for LLVM's list of features."""
        if {"+avx512bw", "+avx512vl", "+avx512vnni"} <= features:
            return Tier.AVX512
        if "+avx2" not in features:
            return Tier.PORTABLE
        return Tier.AVX2_VNNI if "+avxvnni" in features else Tier.AVX2


TIER = Tier.of(set(Target.numba().features.split(",")))
SIGNED_OFFSET = 128 if TIER.has_vnni else 0
"""What `signed` adds to each byte: the VNNI dot product takes unsigned weights."""
REGISTER_LANES = TIER.register_bits // 32
HAS_SHORT_SUMS = TIER is Tier.AVX2
"""Whether products of bytes are first added as int16, as many as fit: that takes fewer instructions."""


def in_registers(
    builder: ir.IRBuilder, emit: Callable[..., ir.Value], *vectors: ir.Value, lanes: int = REGISTER_LANES
) -> ir.Value:
    """emit(parts of all vectors) for each part of `lanes` int32 lanes, joined again."""
    results = []
    for start in range(0, vectors[0].type.count, lanes):
        results.append(emit(*(pick(builder, v, range(start, start + lanes)) for v in vectors)))
    return join_all(builder, results)


def join_all(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors of the same length (as many as a power of two), one after the other."""
    while len(parts) > 1:
        both = range(2 * parts[0].type.count)
        parts = [pick(builder, a, both, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def add_pairs(builder: ir.IRBuilder, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]: int16 pairs in int32 lanes."""
    lanes = acc.type.count
    if TIER.has_vnni:
        name = f"llvm.x86.avx512.vpdpwssd.{TIER.register_bits}"
        return in_registers(builder, lambda c, x, y: call(builder, name, c.type, (c, x, y)), acc, a, b)
    if TIER is Tier.AVX2:
        return builder.add(acc, in_registers(builder, lambda x, y: _multiply_pairs(builder, x, y), a, b))
    halves = ir.VectorType(I16, 2 * lanes)
    a, b = builder.bitcast(a, halves), builder.bitcast(b, halves)
    products = []
    for start in (0, 1):
        of_a, of_b = (builder.sext(pick(builder, v, range(start, 2 * lanes, 2)), acc.type) for v in (a, b))
        products.append(builder.mul(of_a, of_b))
    return builder.add(acc, builder.add(*products))  # in this order LLVM makes one pmaddwd of it on x86


def _multiply_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The sums of products of `add_pairs` in 8 lanes, by AVX2."""
    halves = (builder.bitcast(v, ir.VectorType(I16, 16)) for v in (a, b))
    return call(builder, "llvm.x86.avx2.pmadd.wd", a.type, halves)


def _add_bytes_plain(
    builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value, widen: Callable[..., Any]
) -> ir.Value:
    """Even and odd bytes as int16; `widen` (lshr or ashr) says how the bytes of w become int16."""
    halves = ir.VectorType(I16, 2 * acc.type.count)
    eight = ir.Constant(halves, [8] * halves.count)
    w, x = builder.bitcast(w, halves), builder.bitcast(x, halves)
    even = widen(builder.shl(w, eight), eight), builder.ashr(builder.shl(x, eight), eight)
    odd = widen(w, eight), builder.ashr(x, eight)
    for a, b in (even, odd):
        acc = add_pairs(builder, acc, builder.bitcast(a, acc.type), builder.bitcast(b, acc.type))
    return acc


def add_unsigned(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc + the dot product of 4 unsigned bytes of w with 4 signed bytes of x in each int32 lane.

    Without VNNI bytes of w are below 128.
    """
    if TIER.has_vnni:
        name = f"llvm.x86.avx512.vpdpbusd.{TIER.register_bits}"
        return in_registers(builder, lambda c, a, b: call(builder, name, c.type, (c, a, b)), acc, w, x)
    if TIER is Tier.PORTABLE:
        return _add_bytes_plain(builder, acc, w, x, builder.lshr)
    return add_shorts(builder, acc, in_registers(builder, partial(_multiply_bytes, builder), w, x))


def add_signed(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """The same for the signed bytes w; with VNNI they come with SIGNED_OFFSET, which the caller takes off."""
    if TIER.has_vnni:
        return add_unsigned(builder, acc, w, x)
    if TIER is Tier.PORTABLE:
        return _add_bytes_plain(builder, acc, w, x, builder.ashr)
    return add_shorts(builder, acc, in_registers(builder, partial(_multiply_signed_bytes, builder), w, x))


def _multiply_bytes(builder: ir.IRBuilder, w: ir.Value, x: ir.Value) -> ir.Value:
    """int16 w[2i] * x[2i] + w[2i + 1] * x[2i + 1] by AVX2, in 8 lanes of int32.

    w is below 128 and x above -128, so that no sum leaves int16.
    """
    w, x = (builder.bitcast(v, i8x32.llvm) for v in (w, x))
    products = call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), (w, x))
    return builder.bitcast(products, ir.VectorType(I32, 8))


def _multiply_signed_bytes(builder: ir.IRBuilder, w: ir.Value, x: ir.Value) -> ir.Value:
    """The same for signed w: |w| meets x with the sign of w."""
    w, x = (builder.bitcast(v, i8x32.llvm) for v in (w, x))
    x = call(builder, "llvm.x86.avx2.psign.b", i8x32.llvm, (x, w))
    zero = ir.Constant(i8x32.llvm, [0] * 32)
    w = builder.select(builder.icmp_signed("<", w, zero), builder.sub(zero, w), w)
    return _multiply_bytes(builder, w, x)


def add_products(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value, is_signed: bool) -> ir.Value:
    """acc + the products of bytes as int16, each the sum of two; for HAS_SHORT_SUMS.

    The caller sees to it that they fit. They are added in this order: for a tree of sums, which LLVM would
    make, there are not enough registers.
    """
    multiply = _multiply_signed_bytes if is_signed else _multiply_bytes
    products = in_registers(builder, partial(multiply, builder), w, x)
    shorts = ir.VectorType(I16, 2 * acc.type.count)
    total = builder.add(*(builder.bitcast(v, shorts) for v in (acc, products)))
    return hidden(builder, builder.bitcast(total, acc.type))


def add_shorts(builder: ir.IRBuilder, acc: ir.Value, shorts: ir.Value) -> ir.Value:
    """acc + both int16 of each lane."""
    return add_pairs(builder, acc, shorts, ir.Constant(acc.type, [0x10001] * acc.type.count))


def _make_dot(add: Callable[..., Any], doc: str) -> Callable[..., Any]:
    def dot(typingctx, acc, w, x):
        def codegen(context, builder, sig, args):
            acc, w, x = args
            return add(builder, acc, *(builder.bitcast(v, i32x16.llvm) for v in (w, x)))

        return i32x16(i32x16, i8x64, i8x64), codegen

    dot.__doc__ = doc
    return intrinsic(dot)


dot_unsigned = _make_dot(add_unsigned, "acc + w . x for each 4 bytes; w unsigned (below 128), x signed.")
dot_signed = _make_dot(add_signed, "acc + w . x for each 4 bytes; w from `signed`, x signed.")


@intrinsic
def dot_pairs(typingctx, acc, a, b):
    """acc + a . b for each two int16."""
    return i32x16(i32x16, i32x16, i32x16), lambda context, builder, sig, args: add_pairs(builder, *args)


@intrinsic
def pack_fours(typingctx, a, b):
    """In each four lanes of the result a's four lanes as int16, then b's. They must fit."""

    def codegen(context, builder, sig, args):
        if TIER is Tier.PORTABLE:
            halves = (builder.bitcast(v, i16x32.llvm) for v in args)
            lanes = [i + j for i in range(0, 32, 8) for j in (0, 2, 4, 6, 32, 34, 36, 38)]
            a, b = halves
            return builder.bitcast(pick(builder, a, lanes, b), i32x16.llvm)
        name = "llvm.x86.avx512.packssdw.512" if TIER is Tier.AVX512 else "llvm.x86.avx2.packssdw"
        packed = ir.VectorType(I16, 2 * REGISTER_LANES)

        def emit(a: ir.Value, b: ir.Value) -> ir.Value:
            return builder.bitcast(call(builder, name, packed, (a, b)), a.type)

        return in_registers(builder, emit, *args)

    return i32x16(i32x16, i32x16), codegen


@intrinsic
def signed(typingctx, v):
    """Signed bytes as `dot_signed` wants them: plus SIGNED_OFFSET."""

    def codegen(context, builder, sig, args):
        return builder.xor(args[0], ir.Constant(v.llvm, [-128] * v.lanes)) if SIGNED_OFFSET else args[0]

    return v(v), codegen


def make_lookup(table: tuple[int, ...]) -> Callable[..., Any]:
    """An intrinsic that replaces each byte 0..15 of a vector by the table's entry (int8)."""

    @intrinsic
    def lookup(typingctx, v):
        def codegen(context, builder, sig, args):
            if TIER is Tier.PORTABLE:
                return _select(builder, args[0], table)
            whole = pick(builder, args[0], [i % v.lanes for i in range(64)])
            entries = ir.Constant(i8x64.llvm, list(table) * 4)
            return pick(builder, _shuffle_bytes(builder, entries, whole), range(v.lanes))

        return v(v), codegen

    return lookup


def _select(builder: ir.IRBuilder, v: ir.Value, table: tuple[int, ...]) -> ir.Value:
    """The table's entry for each byte of v, without an instruction for it."""

    def constant(value: int) -> ir.Constant:
        return ir.Constant(v.type, [value] * v.type.count)

    result = constant(table[0])
    for index, entry in enumerate(table[1:], start=1):
        result = builder.select(builder.icmp_unsigned("==", v, constant(index)), constant(entry), result)
    return result


def make_spread(places: list[int | None], shift: int, element: ir.IntType) -> Callable[..., Any]:
    """An intrinsic spread(v) on i32x16: in each four lanes byte i of the result is byte places[i] of v's four
    lanes, or 0 for None. Then all elements of this type are shifted right by `shift` with their sign.

    `places` has 16 entries for each four lanes, 64 in all.
    """

    @intrinsic
    def spread(typingctx, v):
        def codegen(context, builder, sig, args):
            moved = _move_bytes(builder, builder.bitcast(args[0], i8x64.llvm), places, is_hidden=not shift)
            if shift:
                elements = ir.VectorType(element, 512 // element.width)
                moved = builder.bitcast(moved, elements)
                moved = builder.ashr(moved, ir.Constant(elements, [shift] * elements.count))
            return builder.bitcast(moved, i32x16.llvm)

        return i32x16(i32x16), codegen

    return spread


def _move_bytes(builder: ir.IRBuilder, v: ir.Value, places: list[int | None], is_hidden: bool) -> ir.Value:
    """See `make_spread`. Where LLVM sees `places` it makes one shuffle of this and what comes before, which
    can be slower than the one for four lanes: with zeros it takes them from a second register."""
    if TIER is Tier.PORTABLE:
        lanes = [64 if p is None else i // 16 * 16 + p for i, p in enumerate(places)]
        return pick(builder, v, lanes, ir.Constant(i8x64.llvm, [0] * 64))
    indices = ir.Constant(i8x64.llvm, [-128 if p is None else p for p in places])
    return _shuffle_bytes(builder, v, hidden(builder, indices) if is_hidden else indices)


def hidden(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The same value in registers, unknown to LLVM. Not for the portable tier."""
    constraint = "=v,0" if TIER is Tier.AVX512 else "=x,0"

    def emit(part: ir.Value) -> ir.Value:
        result = builder.asm(ir.FunctionType(part.type, [part.type]), "", constraint, [part], False)
        if HAS_SHORT_SUMS:
            result.attributes.add("readnone")  # or loads would not leave loops because of it
        return result

    lanes = TIER.register_bits // v.type.element.width
    return in_registers(builder, emit, v, lanes=lanes)


def _shuffle_bytes(builder: ir.IRBuilder, v: ir.Value, indices: ir.Value) -> ir.Value:
    """In each 16 bytes the bytes of v at `indices`; 0 for a negative one. Not for the portable tier."""
    name = "llvm.x86.avx512.pshuf.b.512" if TIER is Tier.AVX512 else "llvm.x86.avx2.pshuf.b"
    lanes = 4 * REGISTER_LANES
    return in_registers(builder, lambda a, i: call(builder, name, a.type, (a, i)), v, indices, lanes=lanes)
