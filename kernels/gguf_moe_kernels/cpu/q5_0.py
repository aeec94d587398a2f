"""Q5_0: 32 weights in 22 bytes: f16 d, u32 with the fifth bits, 16 bytes of nibbles as in Q4_0.

Weight = d * (q - 16).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.bits import bits_to_bytes
from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.memory import load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x16, low_f16, shifted_twice

LAYOUT = Layout(block_size=32, type_size=22, largest=31, offset=16)


@njit
def quants(w):
    """The 32 weights as bytes 0..31."""
    return (shifted_twice(load_i8x16(w, 6), 0, 4) & 15) | (bits_to_bytes(load_u32(w, 2)) << 4)


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 0)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
