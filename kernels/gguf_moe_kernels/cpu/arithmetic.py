"""Scalar float32 arithmetic whose rounding is fixed: explicit fma, and an exp that is the same everywhere."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import F32, I32, I64

ONE = np.float32(1.0)

# exp(x) = 2^n * e^r with n = round(x / ln 2) and r = x - n ln 2, where ln 2 is split in two (Cody and Waite).
# The polynomial is the Taylor series of e^r to r^7: its error on |r| <= ln 2 / 2 is 2e-9, below half an ulp.
LOG2_E = np.float32(1.44269504)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = tuple(np.float32(c) for c in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0))
EXP_MIN, EXP_MAX = np.float32(-87.0), np.float32(88.0)
"""exp clamps its argument to this range, where the result is a normal number."""


def _unary(name: str):
    @intrinsic
    def function(typingctx, x):
        def codegen(context, builder, signature, args):
            c_type = ir.FunctionType(F32, [F32])
            return builder.call(cgutils.get_or_insert_function(builder.module, c_type, name), args)

        return types.float32(types.float32), codegen

    return function


sqrt = _unary("llvm.sqrt.f32")
round_even = _unary("llvm.rint.f32")
absolute = _unary("llvm.fabs.f32")


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding (float32)."""

    def codegen(context, builder, signature, args):
        c_type = ir.FunctionType(F32, [F32, F32, F32])
        return builder.call(cgutils.get_or_insert_function(builder.module, c_type, "llvm.fma.f32"), args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def float_from_bits(typingctx, bits):
    """The float32 whose bits are the low 32 of an int64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), codegen


@intrinsic
def to_float(typingctx, value):
    """An int64 that fits in 32 bits as float32, rounded to nearest even."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), codegen


@intrinsic
def to_int(typingctx, value):
    """A float32 that holds a small whole number as int64."""

    def codegen(context, builder, signature, args):
        return builder.sext(builder.fptosi(args[0], I32), I64)

    return types.int64(types.float32), codegen


@njit
def exp(x):
    """e^x for float32, by explicit fma: the same bits on every machine. NaN stays NaN."""
    x = min(max(x, EXP_MIN), EXP_MAX) if x == x else x
    n = round_even(x * LOG2_E)
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    p = EXP_COEFFICIENTS[0]
    for c in EXP_COEFFICIENTS[1:]:
        p = fma(p, r, c)
    return p * float_from_bits((to_int(n) + 127) << 23)


@njit
def silu(x):
    """x * sigmoid(x), float32."""
    return x / (ONE + exp(-x))
