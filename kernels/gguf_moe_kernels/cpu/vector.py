"""Vectors as Numba values: i8x16, i8x32 and f32x32, written in plain LLVM operations that every target has.

LLVM splits them over the registers of the CPU at hand and, where it can, turns a dot product into the CPU's
own instruction (vpdpbusd, pmaddwd, sdot). Bytes have no sign of their own: the dot product says how to read
them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from gguf_moe_kernels.cpu.half import f16_to_f32
from gguf_moe_kernels.cpu.memory import F16, F32, I1, I8, I16, I32, I64, make_load, make_store


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
f32x16 = Vector("f32x16", F32, 16)
f32x32 = Vector("f32x32", F32, 32)

load_i8x16 = make_load(i8x16, i8x16.llvm)
load_i8x32 = make_load(i8x32, i8x32.llvm)
load_f32x32 = make_load(f32x32, f32x32.llvm)
store_f32x16 = make_store(f32x16, f32x16.llvm)
store_f32x32 = make_store(f32x32, f32x32.llvm)
load_f16x32 = make_load(f32x32, ir.VectorType(F16, 32), f16_to_f32)


def _bf16_to_f32(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    wide = ir.VectorType(I32, 32)
    high = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * 32))
    return builder.bitcast(high, f32x32.llvm)


load_bf16x32 = make_load(f32x32, ir.VectorType(I16, 32), _bf16_to_f32)


def _splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    lanes = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


def _byte_operator(op: Callable[..., Any], emit: Callable[..., Any]) -> None:
    """Let `vector op int` and `vector op vector` mean the same operation on every byte."""

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
        byte = builder.trunc(args[1], I8)
        return emit(builder, args[0], _splat(builder, byte, sig.args[0].llvm))

    @lower_builtin(op, Vector, Vector)
    def lower_vector(context, builder, sig, args):
        return emit(builder, *args)


_byte_operator(operator.and_, ir.IRBuilder.and_)
_byte_operator(operator.or_, ir.IRBuilder.or_)
_byte_operator(operator.lshift, ir.IRBuilder.shl)
_byte_operator(operator.rshift, ir.IRBuilder.lshr)
_byte_operator(operator.add, ir.IRBuilder.add)
_byte_operator(operator.sub, ir.IRBuilder.sub)


def _sum(builder: ir.IRBuilder, products: ir.Value) -> ir.Value:
    lanes = products.type.count
    name = f"llvm.vector.reduce.add.v{lanes}i32"
    c_type = ir.FunctionType(I32, [products.type])
    total = builder.call(cgutils.get_or_insert_function(builder.module, c_type, name), [products])
    return builder.sext(total, I64)


def _make_dot(left_extend: Callable[..., Any], doc: str) -> Callable[..., Any]:
    def dot(typingctx, a, b):
        def codegen(context, builder, sig, args):
            wide = ir.VectorType(I32, sig.args[0].lanes)
            left, right = left_extend(builder, args[0], wide), builder.sext(args[1], wide)
            return _sum(builder, builder.mul(left, right))

        return types.int64(a, b), codegen

    dot.__doc__ = doc
    return intrinsic(dot)


dot_u8_i8 = _make_dot(ir.IRBuilder.zext, "Sum of a[j] * b[j], exact; a is unsigned, b is signed.")
dot_i8_i8 = _make_dot(ir.IRBuilder.sext, "Sum of a[j] * b[j], exact; both are signed.")


@intrinsic
def bits_to_bytes(typingctx, bits):
    """i8x32 whose byte j is 1 where bit j of the int64 `bits` is set, else 0."""

    def codegen(context, builder, sig, args):
        mask = builder.bitcast(builder.trunc(args[0], I32), ir.VectorType(I1, 32))
        return builder.zext(mask, i8x32.llvm)

    return i8x32(types.int64), codegen


@intrinsic
def low_half(typingctx, v):
    """The first 16 bytes of an i8x32."""
    return _half(0)


@intrinsic
def high_half(typingctx, v):
    """The last 16 bytes of an i8x32."""
    return _half(16)


def _half(start: int):
    def codegen(context, builder, sig, args):
        lanes = ir.Constant(ir.VectorType(I32, 16), list(range(start, start + 16)))
        return builder.shuffle_vector(args[0], ir.Constant(i8x32.llvm, ir.Undefined), lanes)

    return i8x16(i8x32), codegen


@intrinsic
def join_halves(typingctx, low, high):
    """i8x32 from two i8x16."""

    def codegen(context, builder, sig, args):
        lanes = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
        return builder.shuffle_vector(*args, lanes)

    return i8x32(i8x16, i8x16), codegen


def make_lookup(table: tuple[int, ...]) -> Callable[..., Any]:
    """An intrinsic that replaces each byte 0..15 of an i8x32 by the table's entry (int8)."""

    @intrinsic
    def lookup(typingctx, v):
        def codegen(context, builder, sig, args):
            def splat(value: int) -> ir.Constant:
                return ir.Constant(i8x32.llvm, [value] * 32)

            result = splat(table[0])
            for index, entry in enumerate(table[1:], start=1):
                here = builder.icmp_unsigned("==", args[0], splat(index))
                result = builder.select(here, splat(entry), result)
            return result

        return i8x32(i8x32), codegen

    return lookup


@intrinsic
def scale(typingctx, v, d):
    """Each signed byte of an i8x16 or i8x32 times the float32 d, as f32x16 or f32x32."""
    result = f32x16 if v == i8x16 else f32x32

    def codegen(context, builder, sig, args):
        return builder.fmul(builder.sitofp(args[0], result.llvm), _splat(builder, args[1], result.llvm))

    return result(v, types.float32), codegen


@intrinsic
def offset(typingctx, v, m):
    """Each lane of an f32x16 or f32x32 plus the float32 m."""

    def codegen(context, builder, sig, args):
        return builder.fadd(args[0], _splat(builder, args[1], sig.args[0].llvm))

    return v(v, types.float32), codegen


@intrinsic
def zero_f32x32(typingctx):
    """32 zeros."""

    def codegen(context, builder, sig, args):
        return ir.Constant(f32x32.llvm, [0.0] * 32)

    return f32x32(), codegen


@intrinsic
def add_f32x32(typingctx, a, b):
    """a + b in each lane."""

    def codegen(context, builder, sig, args):
        return builder.fadd(*args)

    return f32x32(f32x32, f32x32), codegen


@intrinsic
def fma_f32x32(typingctx, a, b, c):
    """a * b + c in each lane, one rounding."""

    def codegen(context, builder, sig, args):
        c_type = ir.FunctionType(f32x32.llvm, [f32x32.llvm] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, c_type, "llvm.fma.v32f32"), args)

    return f32x32(f32x32, f32x32, f32x32), codegen


@intrinsic
def sum_f32x32(typingctx, v):
    """Sum of the lanes by halves: j and j + 16, then j and j + 8, and so on."""

    def codegen(context, builder, sig, args):
        value, lanes = args[0], 32
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    value,
                    undefined,
                    ir.Constant(ir.VectorType(I32, lanes), list(range(start, start + lanes))),
                )
                for start in (0, lanes)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return types.float32(f32x32), codegen
