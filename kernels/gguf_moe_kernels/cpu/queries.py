"""32 lanes for each of a few query heads that share their keys and values.

For Q queries a value is Q vectors of 32 lanes, one after the other. `queries` is the address of the first
query's float32, and the others follow `stride` bytes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import F32, I64, pointer
from gguf_moe_kernels.cpu.simd import in_registers, join_all
from gguf_moe_kernels.cpu.vector import Vector, call, f32x16, f32x32, pick, splat

LANES = 32


def floats(n: int) -> Vector:
    """float32, 32 lanes for each of n queries."""
    return Vector(f"f32x32x{n}", F32, LANES * n)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call(builder, "llvm.fma.v32f32", c.type, (a, b, c))


def _at(builder: ir.IRBuilder, base: ir.Value, stride: ir.Value, offset: ir.Value, i: int) -> ir.Value:
    """The address of what the i-th query has at `offset`."""
    return builder.add(builder.add(base, offset), builder.mul(stride, ir.Constant(I64, i)))


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = builder.load(pointer(builder, address, ir.Constant(I64, 0), kind))
    value.align = 4
    return value


def make_zero(n: int) -> Callable[..., Any]:
    """An intrinsic: zeros for n queries."""
    vector = floats(n)

    @intrinsic
    def zero(typingctx):
        return vector(), lambda context, builder, sig, args: ir.Constant(vector.llvm, [0.0] * vector.lanes)

    return zero


@intrinsic
def add_products(typingctx, acc, k, queries, stride, offset):
    """fma(k, 32 elements of the query at `offset`, acc) for each query; k is f32x32."""

    def codegen(context, builder, sig, args):
        acc, k, queries, stride, offset = args
        parts = []
        for i in range(sig.args[0].lanes // LANES):
            q = _load(builder, _at(builder, queries, stride, offset, i), f32x32.llvm)
            mine = pick(builder, acc, range(LANES * i, LANES * i + LANES))
            parts.append(_fma(builder, k, q, mine))
        return join_all(builder, parts)

    return acc(acc, f32x32, types.int64, types.int64, types.int64), codegen


@intrinsic
def add_weighted(typingctx, acc, v, weights, stride, offset):
    """fma(v, the query's float32 at `offset` behind `weights`, acc) for each query; v is f32x32."""

    def codegen(context, builder, sig, args):
        acc, v, weights, stride, offset = args
        parts = []
        for i in range(sig.args[0].lanes // LANES):
            weight = splat(builder, _load(builder, _at(builder, weights, stride, offset, i), F32), LANES)
            mine = pick(builder, acc, range(LANES * i, LANES * i + LANES))
            parts.append(_fma(builder, v, weight, mine))
        return join_all(builder, parts)

    return acc(acc, f32x32, types.int64, types.int64, types.int64), codegen


def make_load_store(n: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Intrinsics load(base, stride, offset) and store(base, stride, offset, value) of 32 float32 a query."""
    vector = floats(n)

    @intrinsic
    def load(typingctx, base, stride, offset):
        def codegen(context, builder, sig, args):
            places = (_at(builder, *args, i) for i in range(n))
            return join_all(builder, [_load(builder, place, f32x32.llvm) for place in places])

        return vector(types.int64, types.int64, types.int64), codegen

    @intrinsic
    def store(typingctx, base, stride, offset, value):
        def codegen(context, builder, sig, args):
            for i in range(n):
                mine = pick(builder, args[3], range(LANES * i, LANES * i + LANES))
                place = pointer(builder, _at(builder, *args[:3], i), ir.Constant(I64, 0), f32x32.llvm)
                builder.store(mine, place).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, vector), codegen

    return load, store


@intrinsic
def store_halved(typingctx, base, stride, value):
    """To base + i * stride for the i-th query: lane j + lane j + 16, 16 float32."""
    n = value.lanes // LANES

    def codegen(context, builder, sig, args):
        base, stride, value = args
        for i in range(n):
            low, high = (pick(builder, value, range(s, s + 16)) for s in (LANES * i, LANES * i + 16))
            place = _at(builder, base, stride, ir.Constant(I64, 0), i)
            at = pointer(builder, place, ir.Constant(I64, 0), f32x16.llvm)
            builder.store(builder.fadd(low, high), at).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), codegen


@intrinsic
def sum_sixteen(typingctx, base):
    """The sums of 16 vectors of 16 float32 that lie at `base` one after the other, as f32x16.

    Each is added by halves: lanes j and j + 8, then j and j + 4, and so on.
    """

    def codegen(context, builder, sig, args):
        vectors = [
            _load(builder, builder.add(args[0], ir.Constant(I64, 64 * i)), f32x16.llvm) for i in range(16)
        ]
        width = 16
        while len(vectors) > 1:
            # Of both vectors the first and the second half of each `width` lanes.
            half = width // 2
            starts = [s + i for s in range(0, 32, width) for i in range(half)]
            vectors = [
                builder.fadd(pick(builder, a, starts, b), pick(builder, a, [s + half for s in starts], b))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            width = half
        return vectors[0]

    return f32x16(types.int64), codegen


@intrinsic
def max_floats(typingctx, a, b):
    """The larger of a and b in each lane, float32; b where one is NaN."""

    def codegen(context, builder, sig, args):
        return in_registers(
            builder, lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y), *args, lanes=16
        )

    return a(a, a), codegen
