"""Bits that say something of a byte each: where it is negative, or larger."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import I1, I8
from gguf_moe_kernels.cpu.simd import TIER, Tier
from gguf_moe_kernels.cpu.vector import i8x32, i8x64, pick, splat


def mask_of(builder: ir.IRBuilder, bits: ir.Value, lanes: int) -> ir.Value:
    """A vector of `lanes` i1 from the low bits of an int64.

    AVX-512 takes bits as they are. For the others LLVM would take them out one by one; so each lane gets its
    byte and keeps its bit of it.
    """
    bits = builder.trunc(bits, ir.IntType(lanes))
    if TIER is Tier.AVX512:
        return builder.bitcast(bits, ir.VectorType(I1, lanes))
    bytes_ = builder.bitcast(bits, ir.VectorType(I8, lanes // 8))
    spread = pick(builder, bytes_, [i // 8 for i in range(lanes)])
    own = ir.Constant(spread.type, [1 << i % 8 for i in range(lanes)])
    return builder.icmp_unsigned("==", builder.and_(spread, own), own)


@intrinsic
def bits_to_bytes(typingctx, bits):
    """i8x32 whose byte j is 1 where bit j of the int64 `bits` is set, else 0."""

    def codegen(context, builder, sig, args):
        return builder.zext(mask_of(builder, args[0], 32), i8x32.llvm)

    return i8x32(types.int64), codegen


@intrinsic
def negative_where(typingctx, v, bits):
    """The bytes of v, with the other sign where the int64 `bits` has a 1."""

    def codegen(context, builder, sig, args):
        v, bits = args
        return builder.select(mask_of(builder, bits, 64), builder.sub(ir.Constant(v.type, [0] * 64), v), v)

    return i8x64(i8x64, types.int64), codegen


@intrinsic
def add_where(typingctx, v, bits, n):
    """The bytes of v, plus n where the int64 `bits` has a 1."""

    def codegen(context, builder, sig, args):
        v, bits, n = args
        larger = builder.add(v, splat(builder, builder.trunc(n, I8), 64))
        return builder.select(mask_of(builder, bits, 64), larger, v)

    return i8x64(i8x64, types.int64, types.int64), codegen
