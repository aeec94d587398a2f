"""TQ1_0: 256 weights in 54 bytes: 48 bytes of five digits in base 3, 4 bytes of four, f16 d.

A byte is a fraction of 256 whose digits are the weights, the first digit first. The first digits of 32 bytes
come first, then their second digits, and so on to the fifth; likewise 16 bytes and then 4 bytes, these with
four digits. Weight = d * (digit - 1).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES
from gguf_moe_kernels.cpu.lanes import splat_i32
from gguf_moe_kernels.cpu.memory import load_u32
from gguf_moe_kernels.cpu.ternary import (
    make_codes_of_bytes,
    make_digits,
    make_digits_of_codes,
    store_unit_scales,
)
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, first_i8x16, join, load_i8x16, load_i8x32, low_f16

LAYOUT = Layout(block_size=256, type_size=54, largest=2, offset=1)
DIGITS_OF_PART_3 = [n for n in (2, 3, 4) for _ in range(16)] + [i // 4 for i in range(16)]


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 52)))
    store_unit_scales(header)


if HAS_TABLES:
    low, high = make_codes_of_bytes()
    # A block's bytes in one register: 0 .. 31, and 22 .. 53 behind them.
    first, second, last = [*range(32)], [*range(42, 58)], [*range(58, 62)]
    part_0 = make_digits_of_codes(first * 2, [0] * 32 + [1] * 32)
    part_1 = make_digits_of_codes(first * 2, [2] * 32 + [3] * 32)
    part_2 = make_digits_of_codes(first + second * 2, [4] * 32 + [0] * 16 + [1] * 16)
    part_3 = make_digits_of_codes(second * 3 + last * 4, DIGITS_OF_PART_3)

    @njit
    def quants(w, k):
        """Weights 64k .. 64k + 63 as bytes 0..2."""
        block = join(load_i8x32(w, 0), load_i8x32(w, 22))
        a, b = low(block, 0, 0, 0), high(block, 0, 0, 0)
        if k == 0:
            return part_0(a, b)
        if k == 1:
            return part_1(a, b)
        return part_2(a, b) if k == 2 else part_3(a, b)

else:
    digits_0_1 = make_digits([0] * 32 + [1] * 32)
    digits_2_3 = make_digits([2] * 32 + [3] * 32)
    digits_4_and_0_1 = make_digits([4] * 32 + [0] * 16 + [1] * 16)
    digits_2_3_4_and_last = make_digits(DIGITS_OF_PART_3)

    @njit
    def quants(w, k):
        """Weights 64k .. 64k + 63 as bytes 0..2."""
        first, second = load_i8x32(w, 0), load_i8x16(w, 32)
        if k == 0:
            return digits_0_1(join(first, first))
        if k == 1:
            return digits_2_3(join(first, first))
        twice = join(second, second)
        if k == 2:
            return digits_4_and_0_1(join(first, twice))
        last = first_i8x16(as_bytes(splat_i32(load_u32(w, 48))))
        return digits_2_3_4_and_last(join(twice, join(second, last)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
