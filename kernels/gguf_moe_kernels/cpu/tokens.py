"""ROWS lanes for each of several tokens: one lane for each row of weights that the tokens meet.

For T tokens a value is T vectors of ROWS lanes, one after the other. `tokens` is always the address of T
addresses (int64) of activation rows, and offsets count from there. A number of a token is in all its lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import F32, I32, I64, make_load, make_store, pointer
from gguf_moe_kernels.cpu.simd import (
    TIER,
    Tier,
    add_pairs,
    add_products,
    add_shorts,
    add_signed,
    add_unsigned,
    in_registers,
)
from gguf_moe_kernels.cpu.vector import Vector, call, splat

ROWS = 32 if TIER is Tier.AVX512 else 16
"""Rows side by side. With 32 a number of a token serves two registers of weights, if there are so many."""
AT_ONCE = 1 if TIER is Tier.PORTABLE else 4
"""Tokens whose sums fit into the registers together."""
PAIR = min(2, AT_ONCE)
"""Tokens left over by AT_ONCE meet their weights together."""
LANES_SIZE = 4 * ROWS
"""Bytes of an int32 or float32 in ROWS lanes."""
INTEGERS = {n: Vector(f"i32x{ROWS}x{n}", I32, ROWS * n) for n in (1, PAIR, AT_ONCE)}
FLOATS = {n: Vector(f"f32x{ROWS}x{n}", F32, ROWS * n) for n in (1, PAIR, AT_ONCE)}


@intrinsic
def ones(typingctx):
    """Four bytes of 1 in ROWS lanes."""
    vector = INTEGERS[1]
    return vector(), lambda context, builder, sig, args: ir.Constant(vector.llvm, [0x01010101] * ROWS)


load_integers = make_load(INTEGERS[1], INTEGERS[1].llvm)
load_one, store_one = make_load(FLOATS[1], FLOATS[1].llvm), make_store(FLOATS[1], FLOATS[1].llvm)
load_pair = make_load(FLOATS[PAIR], FLOATS[PAIR].llvm)
store_pair = make_store(FLOATS[PAIR], FLOATS[PAIR].llvm)
load_some = make_load(FLOATS[AT_ONCE], FLOATS[AT_ONCE].llvm)
store_some = make_store(FLOATS[AT_ONCE], FLOATS[AT_ONCE].llvm)
"""Floats of one token, of PAIR and of AT_ONCE tokens."""


def _numbers(builder: ir.IRBuilder, tokens: ir.Value, offset: ir.Value, n: int, kind: ir.Type) -> ir.Value:
    """The 4-byte number at `offset` of each token's row, in all of its lanes."""
    numbers = []
    for t in range(n):
        row = builder.load(pointer(builder, tokens, ir.Constant(I64, 8 * t), I64))
        number = builder.load(pointer(builder, row, offset, kind))
        number.align = 1
        numbers.append(splat(builder, number, ROWS))
    return numbers


def _for_each(
    builder: ir.IRBuilder,
    emit: Callable[..., ir.Value],
    acc: ir.Value,
    numbers: list[ir.Value],
    *others: ir.Value,
) -> ir.Value:
    """emit(the lanes of acc, the number, the lanes of each of the others) for each token."""
    left = iter(numbers)
    return in_registers(builder, lambda a, *rest: emit(a, next(left), *rest), acc, *others, lanes=ROWS)


def _make_dot(add: Callable[..., Any], doc: str) -> Callable[..., Any]:
    def dot(typingctx, acc, v, tokens, offset):
        def codegen(context, builder, sig, args):
            acc, v, tokens, offset = args
            numbers = _numbers(builder, tokens, offset, sig.args[0].lanes // ROWS, I32)
            return _for_each(builder, lambda a, x: add(builder, a, v, x), acc, numbers)

        return acc(acc, INTEGERS[1], types.int64, types.int64), codegen

    dot.__doc__ = doc
    return intrinsic(dot)


dot_unsigned = _make_dot(add_unsigned, "acc + v . x: 4 bytes a lane and 4 int8 at `offset`; see simd.")
dot_signed = _make_dot(add_signed, "The same for bytes from simd.signed.")
dot_pairs = _make_dot(add_pairs, "acc + v . x: two int16 a lane and two at `offset`.")


def make_shorts(n: int, is_signed: bool) -> Callable[..., Any]:
    """An intrinsic shorts(like, quants, tokens, offset) for HAS_SHORT_SUMS: n times 4 products a lane as two
    int16, for as many tokens as `like` has lanes for.

    quants: the address of n times 4 bytes a lane, LANES_SIZE apart. Written out, because a loop so short
    would end with a jump that the processor does not foresee.
    """

    @intrinsic
    def shorts(typingctx, like, quants, tokens, offset):
        result = INTEGERS[like.lanes // ROWS]

        def codegen(context, builder, sig, args):
            _, quants, tokens, offset = args

            def add(acc: ir.Value, x: ir.Value, v: ir.Value) -> ir.Value:
                return add_products(builder, acc, v, x, is_signed)

            total: ir.Value = ir.Constant(result.llvm, [0] * result.lanes)
            for i in range(n):
                v = builder.load(pointer(builder, quants, ir.Constant(I64, LANES_SIZE * i), INTEGERS[1].llvm))
                v.align = 4
                at = builder.add(offset, ir.Constant(I64, 4 * i))
                numbers = _numbers(builder, tokens, at, result.lanes // ROWS, I32)
                total = _for_each(builder, partial(add, v=v), total, numbers)
            return total

        return result(like, types.int64, types.int64, types.int64), codegen

    return shorts


@intrinsic
def zero_one(typingctx):
    """Floats 0 for one token."""
    zeros = [0.0] * ROWS
    return FLOATS[1](), lambda context, builder, sig, args: ir.Constant(FLOATS[1].llvm, zeros)


@intrinsic
def zero_integers(typingctx, like):
    """Integers 0 for as many tokens as `like` has lanes for."""
    result = INTEGERS[like.lanes // ROWS]
    return result(like), lambda context, builder, sig, args: ir.Constant(result.llvm, [0] * result.lanes)


@intrinsic
def add_scaled(typingctx, acc, v, scale):
    """acc + v * scale, int32; `scale` has ROWS lanes and is the same for all tokens."""

    def codegen(context, builder, sig, args):
        acc, v, scale = args
        return in_registers(builder, lambda a, b: builder.add(a, builder.mul(b, scale)), acc, v, lanes=ROWS)

    return acc(acc, acc, INTEGERS[1]), codegen


@intrinsic
def add_scaled_shorts(typingctx, acc, v, scale):
    """acc + both int16 of each lane of v times those of `scale`, which is the same for all tokens."""

    def codegen(context, builder, sig, args):
        acc, v, scale = args
        return in_registers(builder, lambda a, b: add_pairs(builder, a, b, scale), acc, v, lanes=ROWS)

    return acc(acc, acc, INTEGERS[1]), codegen


@intrinsic
def add_both_shorts(typingctx, acc, v):
    """acc + both int16 of each lane of v."""
    return acc(acc, acc), lambda context, builder, sig, args: add_shorts(builder, *args)


@intrinsic
def subtract_multiple(typingctx, acc, tokens, offset, factor):
    """acc - x * factor with the int32 x at `offset`."""

    def codegen(context, builder, sig, args):
        acc, tokens, offset, factor = args
        numbers = _numbers(builder, tokens, offset, sig.args[0].lanes // ROWS, I32)
        factor = splat(builder, builder.trunc(factor, I32), ROWS)
        return _for_each(builder, lambda a, x: builder.sub(a, builder.mul(x, factor)), acc, numbers)

    return acc(acc, types.int64, types.int64, types.int64), codegen


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call(builder, f"llvm.fma.v{ROWS}f32", c.type, (a, b, c))


@intrinsic
def add_term(typingctx, acc, d, tokens, offset, total):
    """fma(d * x, total as float32, acc) with the float32 x at `offset`; d has ROWS lanes."""

    def codegen(context, builder, sig, args):
        acc, d, tokens, offset, total = args
        numbers = _numbers(builder, tokens, offset, sig.args[0].lanes // ROWS, F32)

        def emit(a: ir.Value, x: ir.Value, whole: ir.Value) -> ir.Value:
            return _fma(builder, builder.fmul(d, x), builder.sitofp(whole, d.type), a)

        return _for_each(builder, emit, acc, numbers, total)

    return acc(acc, FLOATS[1], types.int64, types.int64, total), codegen


@intrinsic
def add_product(typingctx, acc, m, tokens, offset):
    """fma(m, x, acc) with the float32 x at `offset`; m has ROWS lanes."""

    def codegen(context, builder, sig, args):
        acc, m, tokens, offset = args
        numbers = _numbers(builder, tokens, offset, sig.args[0].lanes // ROWS, F32)
        return _for_each(builder, lambda a, x: _fma(builder, m, x, a), acc, numbers)

    return acc(acc, FLOATS[1], types.int64, types.int64), codegen
