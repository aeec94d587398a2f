"""What the ternary types share: digits in base 3, and scales of 1 for kernels that want one a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.block import store_scales
from gguf_moe_kernels.cpu.byte_tables import from_two, make_table
from gguf_moe_kernels.cpu.vector import as_bytes, i8x64, i16x32, zero_i32x16


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


def make_codes_of_bytes() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What `make_table` makes of the digits of fractions of 256: 0 .. 3 with two bits each, and digit 4."""
    codes = np.zeros(256, np.int64)
    for digit in range(5):
        codes |= np.arange(256) * 3**digit % 256 * 3 // 256 << 2 * digit
    return make_table(codes & 255), make_table(codes >> 8)


def make_digits_of_codes(places: list[int], digits: list[int]) -> Callable[..., Any]:
    """An intrinsic digits_of(low, high): of byte places[i] digit number digits[i], as a byte 0..2.

    low and high: what the tables of `make_codes_of_bytes` make of 64 bytes. Of two neighbours the digits have
    the same number.
    """
    from_both = [place + 64 * (digit // 4) for place, digit in zip(places, digits, strict=True)]
    shifts = [2 * (digit % 4) for digit in digits[::2]]

    @intrinsic
    def digits_of(typingctx, low, high):
        def codegen(context, builder, sig, args):
            pairs = builder.bitcast(from_two(builder, *args, from_both), i16x32.llvm)
            moved = builder.bitcast(builder.lshr(pairs, ir.Constant(pairs.type, shifts)), i8x64.llvm)
            return builder.and_(moved, ir.Constant(moved.type, [3] * 64))

        return i8x64(i8x64, i8x64), codegen

    return digits_of
