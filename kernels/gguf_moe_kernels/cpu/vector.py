"""Vectors as Numba values, and what happens lane by lane, in plain LLVM operations that every target has.

LLVM splits them over the registers of the CPU at hand. Bytes have no sign of their own: the operation says
how to read them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from gguf_moe_kernels.cpu.half import f16_to_f32
from gguf_moe_kernels.cpu.memory import F16, F32, I8, I16, I32, I64, make_load, make_store, pointer


class Vector(types.Type):
    """A Numba type whose values are LLVM vectors of `lanes` elements."""

    def __init__(self, name: str, element: ir.Type, lanes: int):
        self.lanes = lanes
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, numba_type.llvm)


i8x16 = Vector("i8x16", I8, 16)
i8x32 = Vector("i8x32", I8, 32)
i8x64 = Vector("i8x64", I8, 64)
i16x32 = Vector("i16x32", I16, 32)
i32x16 = Vector("i32x16", I32, 16)
i32x64 = Vector("i32x64", I32, 64)
f32x4 = Vector("f32x4", F32, 4)
f32x16 = Vector("f32x16", F32, 16)
f32x32 = Vector("f32x32", F32, 32)

load_i8x16 = make_load(i8x16, i8x16.llvm)
load_i16x32 = make_load(i16x32, i16x32.llvm)
load_i8x32 = make_load(i8x32, i8x32.llvm)
load_i8x64 = make_load(i8x64, i8x64.llvm)
load_i32x16 = make_load(i32x16, i32x16.llvm)
load_f32x16 = make_load(f32x16, f32x16.llvm)
load_f32x32 = make_load(f32x32, f32x32.llvm)
store_i8x64 = make_store(i8x64, i8x64.llvm)
store_i32x16 = make_store(i32x16, i32x16.llvm)
store_f32x4 = make_store(f32x4, f32x4.llvm)
store_f32x16 = make_store(f32x16, f32x16.llvm)
load_f16x32 = make_load(f32x32, ir.VectorType(F16, 32), f16_to_f32)


def _bf16_to_f32(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    wide = ir.VectorType(I32, 32)
    high = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * 32))
    return builder.bitcast(high, f32x32.llvm)


load_bf16x32 = make_load(f32x32, ir.VectorType(I16, 32), _bf16_to_f32)


@intrinsic
def load_q8_0x32(typingctx, base, offset):
    """The 32 elements of a block of Q8_0 as float32; the products are exact."""

    def codegen(context, builder, sig, args):
        d = builder.load(pointer(builder, *args, F16))
        d.align = 1
        quants = builder.load(
            pointer(builder, args[0], builder.add(args[1], ir.Constant(I64, 2)), i8x32.llvm)
        )
        quants.align = 1
        floats = builder.sitofp(builder.sext(quants, ir.VectorType(I32, 32)), f32x32.llvm)
        return builder.fmul(floats, splat(builder, f16_to_f32(builder, d), 32))

    return f32x32(types.int64, types.int64), codegen


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """`value` in every lane."""
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return pick(builder, one, [0] * lanes)


def pick(builder: ir.IRBuilder, v: ir.Value, lanes: Iterable[int], other: ir.Value | None = None) -> ir.Value:
    """Some lanes of v, or of v and then `other`, in the order given."""
    lanes = list(lanes)
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined) if other is None else other, mask)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Iterable[ir.Value]) -> ir.Value:
    """The result of an LLVM intrinsic."""
    args = list(args)
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def _operator(op: Callable[..., Any], emit: Callable[..., Any]) -> None:
    """Let `vector op int` and `vector op vector` mean the same operation on every integer element."""

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            left, right = args
            if not isinstance(left, Vector):
                return None
            if isinstance(right, types.Integer):
                return signature(left, left, types.int64)
            return signature(left, left, left) if right == left else None

    @lower_builtin(op, Vector, types.Integer)
    def lower_scalar(context, builder, sig, args):
        vector = sig.args[0].llvm
        return emit(builder, args[0], splat(builder, builder.trunc(args[1], vector.element), vector.count))

    @lower_builtin(op, Vector, Vector)
    def lower_vector(context, builder, sig, args):
        return emit(builder, *args)


_operator(operator.and_, ir.IRBuilder.and_)
_operator(operator.or_, ir.IRBuilder.or_)
_operator(operator.lshift, ir.IRBuilder.shl)
_operator(operator.rshift, ir.IRBuilder.lshr)
_operator(operator.add, ir.IRBuilder.add)
_operator(operator.sub, ir.IRBuilder.sub)
_operator(operator.mul, ir.IRBuilder.mul)


@intrinsic
def join(typingctx, low, high):
    """The bytes of two vectors, one after the other."""
    result = {i8x16: i8x32, i8x32: i8x64}[low]

    def codegen(context, builder, sig, args):
        return pick(builder, args[0], range(result.lanes), args[1])

    return result(low, low), codegen


@intrinsic
def nibbles_by_eights(typingctx, v):
    """The 64 nibbles of an i8x32 as bytes: of each 8 bytes first the low, then the high ones."""

    def codegen(context, builder, sig, args):
        fifteen, four = (ir.Constant(v.llvm, [n] * 32) for n in (15, 4))
        low, high = builder.and_(args[0], fifteen), builder.lshr(args[0], four)
        return pick(
            builder, low, [s + j + i for i in range(0, 32, 8) for s in (0, 32) for j in range(8)], high
        )

    return i8x64(i8x32), codegen


@intrinsic
def shifted_twice(typingctx, v, first, second):
    """The bytes of v shifted right by `first`, then those shifted by `second`.

    Bits of a byte's neighbour come in from above: mask them off.
    """
    result = {i8x16: i8x32, i8x32: i8x64}[v]

    def codegen(context, builder, sig, args):
        n = v.lanes // 2  # there is no shift of bytes, so pairs of them are shifted
        twice = builder.bitcast(pick(builder, args[0], [*range(v.lanes)] * 2), ir.VectorType(I16, 2 * n))
        shifts = (splat(builder, builder.trunc(shift, I16), n) for shift in args[1:])
        low = next(shifts)
        moved = builder.lshr(twice, pick(builder, low, range(2 * n), next(shifts)))
        return builder.bitcast(moved, result.llvm)

    return result(v, types.int64, types.int64), codegen


@intrinsic
def as_bytes(typingctx, v):
    """An i32x16 as i8x64."""
    return i8x64(i32x16), lambda context, builder, sig, args: builder.bitcast(args[0], i8x64.llvm)


@intrinsic
def first_i8x16(typingctx, v):
    """The first 16 bytes of an i8x64."""
    return i8x16(i8x64), lambda context, builder, sig, args: pick(builder, args[0], range(16))


@intrinsic
def float_bits(typingctx, v):
    """An i32x16 of the bits of float32 as f32x16."""
    return f32x16(i32x16), lambda context, builder, sig, args: builder.bitcast(args[0], f32x16.llvm)


def _make_half_float(shift: int) -> Callable[..., Any]:
    def half_float(typingctx, v):
        def codegen(context, builder, sig, args):
            high = builder.lshr(args[0], ir.Constant(args[0].type, [shift] * 16))
            bits = builder.trunc(high, ir.VectorType(I16, 16))
            return f16_to_f32(builder, builder.bitcast(bits, ir.VectorType(F16, 16)))

        return f32x16(i32x16), codegen

    half_float.__doc__ = f"The float16 in bits {shift} .. {shift + 15} of each int32, as float32."
    return intrinsic(half_float)


low_f16, high_f16 = _make_half_float(0), _make_half_float(16)


@intrinsic
def to_floats(typingctx, v):
    """An i32x16 as float32, rounded to nearest even."""
    return f32x16(i32x16), lambda context, builder, sig, args: builder.sitofp(args[0], f32x16.llvm)


@intrinsic
def zero_i32x16(typingctx):
    """16 zeros."""
    return i32x16(), lambda context, builder, sig, args: ir.Constant(i32x16.llvm, [0] * 16)


def _make_zero(vector: Vector) -> Callable[..., Any]:
    def zero(typingctx):
        return vector(), lambda context, builder, sig, args: ir.Constant(vector.llvm, [0.0] * vector.lanes)

    zero.__doc__ = f"{vector.lanes} zeros."
    return intrinsic(zero)


zero_f32x4, zero_f32x16, zero_f32x32 = (_make_zero(vector) for vector in (f32x4, f32x16, f32x32))


@intrinsic
def add_floats(typingctx, a, b):
    """a + b in each lane, float32."""
    return a(a, a), lambda context, builder, sig, args: builder.fadd(*args)


@intrinsic
def multiply_floats(typingctx, a, b):
    """a * b in each lane, float32."""
    return a(a, a), lambda context, builder, sig, args: builder.fmul(*args)


@intrinsic
def negative(typingctx, v):
    """-v, float32."""
    return v(v), lambda context, builder, sig, args: builder.fneg(args[0])


@intrinsic
def fma_floats(typingctx, a, b, c):
    """a * b + c in each lane, float32, one rounding."""

    def codegen(context, builder, sig, args):
        return call(builder, f"llvm.fma.v{a.lanes}f32", a.llvm, args)

    return a(a, a, a), codegen


@intrinsic
def sum_f32x32(typingctx, v):
    """Sum of the lanes by halves: j and j + 16, then j and j + 8, and so on."""

    def codegen(context, builder, sig, args):
        value, lanes = args[0], 32
        while lanes > 1:
            lanes //= 2
            low, high = (pick(builder, value, range(start, start + lanes)) for start in (0, lanes))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return types.float32(f32x32), codegen
