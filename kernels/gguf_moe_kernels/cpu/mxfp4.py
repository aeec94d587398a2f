"""MXFP4: 32 weights in 17 bytes: an exponent byte e, then 16 bytes of nibbles as in Q4_0 that index a table.

Weight = 2^(e - 128) * VALUES[q]: the table holds twice the e2m1 values, so the scale is half of 2^(e - 127).
Table: kvalues_mxfp4 in ggml-common.h; scale: ggml_e8m0_to_fp32_half in ggml-impl.h.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u8, make_dequantize, store_d
from gguf_moe_kernels.cpu.simd import make_lookup
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import float_bits, load_i8x16, multiply_floats, shifted_twice

LAYOUT = Layout(block_size=32, type_size=17, largest=12, is_signed=True)
VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
lookup = make_lookup(VALUES)


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    return lookup(shifted_twice(load_i8x16(w, 1), 0, 4) & 15)


@njit
def power_of_two(e):
    """2^(e - 128) as float32, in two factors because e of 0 and 1 give subnormal numbers."""
    half = e >> 1
    return multiply_floats(float_bits((half + 63) << 23), float_bits((e - half + 63) << 23))


@njit
def unpack_header(places, apart, header):
    store_d(header, power_of_two(gather_u8(places, apart, 0)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
