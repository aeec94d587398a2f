"""TQ2_0: 256 weights in 66 bytes: 64 bytes of 2-bit q that lie as in Q2_K, f16 d.

Weight = d * (q - 1).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.ternary import store_unit_scales
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x32, low_f16, shifted_twice

LAYOUT = Layout(block_size=256, type_size=66, largest=2, offset=1)


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 64)))
    store_unit_scales(header)


@njit
def quants(w, k):
    """Weights 64k .. 64k + 63 as bytes 0..3."""
    half, part = k // 2, k % 2
    return shifted_twice(load_i8x32(w, 32 * half), 4 * part, 4 * part + 2) & 3


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
