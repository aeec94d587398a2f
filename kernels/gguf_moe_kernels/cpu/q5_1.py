"""Q5_1: 32 weights in 24 bytes: f16 d, f16 m, u32 with the fifth bits, 16 bytes of nibbles as in Q4_0.

Weight = d * q + m; the sum of m over a block is m times the sum of the activations (Q8_1).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.bits import bits_to_bytes
from gguf_moe_kernels.cpu.block import Layout, gather_u32, make_dequantize, store_d, store_dmin
from gguf_moe_kernels.cpu.memory import load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import high_f16, load_i8x16, low_f16, shifted_twice

LAYOUT = Layout(block_size=32, type_size=24, largest=31, has_minimum=True)


@njit
def quants(w):
    """The 32 weights as bytes 0..31."""
    return (shifted_twice(load_i8x16(w, 8), 0, 4) & 15) | (bits_to_bytes(load_u32(w, 4)) << 4)


@njit
def unpack_header(places, apart, header):
    d_and_m = gather_u32(places, apart, 0)
    store_d(header, low_f16(d_and_m))
    store_dmin(header, high_f16(d_and_m))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
