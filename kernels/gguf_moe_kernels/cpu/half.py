"""float16 to float32 and back. Where the CPU can't, by integer arithmetic: LLVM would call a C function that
the process may lack.

The integer forms are Fabian Giesen's ("half to float", "float to half"); both round to even and are exact for
subnormal numbers.
"""

from __future__ import annotations

from llvmlite import ir

from gguf_moe_kernels.cpu.target import Target

I16, I32, F16, F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()

INFINITY = 0x7F800000
TWO_TO_112 = float(2**112)
"""The ratio of the smallest normal float16, read as the upper bits of a float32, to its true value."""
SMALLEST_NORMAL, TOO_LARGE = 0x38800000, 0x47800000
"""2^-14, the smallest normal float16, and 2^16, beyond the largest; both as the bits of a float32."""


def f16_to_f32(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A float16, or a vector of them, as float32."""
    wide = _like(F32, value)
    if _has_instruction(builder):
        return builder.fpext(value, wide)
    number = _like(I32, value)
    bits = builder.zext(builder.bitcast(value, _like(I16, value)), number)
    magnitude = builder.shl(builder.and_(bits, _constant(number, 0x7FFF)), _constant(number, 13))
    scaled = builder.fmul(builder.bitcast(magnitude, wide), _constant(wide, TWO_TO_112))
    result = builder.bitcast(scaled, number)
    is_finite = builder.icmp_unsigned("<", magnitude, _constant(number, 0x7C00 << 13))
    result = builder.select(is_finite, result, builder.or_(magnitude, _constant(number, INFINITY)))
    sign = builder.shl(builder.and_(bits, _constant(number, 0x8000)), _constant(number, 16))
    return builder.bitcast(builder.or_(result, sign), wide)


def f32_to_f16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A float32, or a vector of them, rounded to float16."""
    narrow = _like(F16, value)
    if _has_instruction(builder):
        return builder.fptrunc(value, narrow)
    number, wide = _like(I32, value), _like(F32, value)

    def constant(bits: int) -> ir.Constant:
        return _constant(number, bits)

    bits = builder.bitcast(value, number)
    magnitude = builder.and_(bits, constant(0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, constant(INFINITY))
    large = builder.select(is_nan, constant(0x7E00), constant(0x7C00))
    # A subnormal float16 counts in steps of 2^-24, as the last bit of a float32 near 0.5 does.
    half = _constant(wide, 0.5)
    aligned = builder.bitcast(builder.fadd(builder.bitcast(magnitude, wide), half), number)
    small = builder.sub(aligned, builder.bitcast(half, number))
    odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    rebased = builder.add(builder.sub(magnitude, constant(112 << 23)), constant(0xFFF))
    normal = builder.lshr(builder.add(rebased, odd), constant(13))
    result = builder.select(
        builder.icmp_unsigned("<", magnitude, constant(SMALLEST_NORMAL)),
        small,
        builder.select(builder.icmp_unsigned("<", magnitude, constant(TOO_LARGE)), normal, large),
    )
    sign = builder.and_(builder.lshr(bits, constant(16)), constant(0x8000))
    return builder.bitcast(builder.trunc(builder.or_(result, sign), _like(I16, value)), narrow)


def _has_instruction(builder: ir.IRBuilder) -> bool:
    is_arm64 = builder.module.triple.startswith(("aarch64", "arm64"))
    return is_arm64 or Target.numba().has("f16c")


def _like(element: ir.Type, value: ir.Value) -> ir.Type:
    """`element`, or a vector of as many as `value` has."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(kind: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)
