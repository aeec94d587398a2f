"""Scalar float32 arithmetic whose rounding is fixed: explicit fma, and exp and log by it."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gguf_moe_kernels.constants import (
    EXP_COEFFICIENTS,
    EXP_MAX,
    EXP_MIN,
    GELU_CUBIC,
    GELU_LINEAR,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_COEFFICIENTS,
    SOFTPLUS_MAX,
    SQRT_HALF_BITS,
)
from gguf_moe_kernels.cpu.memory import F32, I32, I64

ONE, TWO = np.float32(1.0), np.float32(2.0)


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
def bits_of(typingctx, x):
    """The bits of a float32, sign-extended to int64."""

    def codegen(context, builder, signature, args):
        return builder.sext(builder.bitcast(args[0], I32), I64)

    return types.int64(types.float32), codegen


@intrinsic
def to_float(typingctx, value):
    """An int64 that fits in 32 bits as float32, rounded to nearest even."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), codegen


@intrinsic
def to_int(typingctx, value):
    """A whole float32 below 2^22 in magnitude as int64; for what is not finite some number, never a trap.

    Added to 1.5 * 2^23 it stands in the low bits. LLVM's own conversion is undefined for NaN.
    """

    def codegen(context, builder, signature, args):
        one_and_a_half = ir.Constant(F32, 1.5 * 2**23)
        bits = builder.bitcast(builder.fadd(args[0], one_and_a_half), I32)
        return builder.sext(builder.sub(bits, builder.bitcast(one_and_a_half, I32)), I64)

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
def log(x):
    """The natural logarithm of a positive normal float32, by explicit fma. NaN stays NaN."""
    bits = bits_of(x)
    e = (bits - SQRT_HALF_BITS) >> 23
    m = float_from_bits(bits - (e << 23)) - ONE
    s = m / (m + TWO)
    z = s * s
    p = LOG_COEFFICIENTS[0]
    for c in LOG_COEFFICIENTS[1:]:
        p = fma(p, z, c)
    n = to_float(e)
    return fma(n, LN2_HIGH, fma(n, LN2_LOW, fma(s * z, p, s + s))) + (x - x)


@njit
def softplus(x):
    """log(1 + e^x), float32."""
    return x if x > SOFTPLUS_MAX else log(ONE + exp(x))


@njit
def sigmoid(x):
    """1 / (1 + e^-x), float32."""
    return ONE / (ONE + exp(-x))


@njit
def silu(x):
    """x * sigmoid(x), float32."""
    return x / (ONE + exp(-x))


@njit
def gelu(x):
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), float32."""
    return x / (ONE + exp(-(x * fma(GELU_CUBIC, x * x, GELU_LINEAR))))
