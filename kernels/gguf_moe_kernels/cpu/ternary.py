"""What the ternary types share: digits in base 3, and scales of 1 for kernels that want one a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.block import store_scales
from gguf_moe_kernels.cpu.vector import as_bytes, i8x64, zero_i32x16


@njit
def store_unit_scales(header):
    """A scale of 1 for each of 8 groups."""
    ones = as_bytes(zero_i32x16()) + 1
    store_scales(header, 0, ones)
    store_scales(header, 1, ones)


def make_digits(digits: list[int]) -> Callable[..., Any]:
    """An intrinsic: of byte i, a fraction of 256, digit number digits[i] in base 3, as a byte 0..2."""

    @intrinsic
    def digits_of(typingctx, v):
        def codegen(context, builder, sig, args):
            def constant(values: list[int]) -> ir.Constant:
                return ir.Constant(i8x64.llvm, values)

            fraction = builder.mul(args[0], constant([3**digit for digit in digits]))
            # The digit is 3 f / 256 without its fraction: it counts how many thirds of 256 there are in f.
            first, second = (builder.icmp_unsigned(">=", fraction, constant([n] * 64)) for n in (86, 171))
            return builder.add(*(builder.zext(bit, i8x64.llvm) for bit in (first, second)))

        return i8x64(i8x64), codegen

    return digits_of
