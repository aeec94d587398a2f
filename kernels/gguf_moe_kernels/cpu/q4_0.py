"""Q4_0: 32 weights in 18 bytes: f16 d, then 16 bytes with q[j] in the low and q[j + 16] in the high nibble.

Weight = d * (q - 8).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x16, low_f16, shifted_twice

LAYOUT = Layout(block_size=32, type_size=18, largest=15, offset=8)


@njit
def quants(w):
    """The 32 weights as bytes 0..15."""
    return shifted_twice(load_i8x16(w, 2), 0, 4) & 15


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 0)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
