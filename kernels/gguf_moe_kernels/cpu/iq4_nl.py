"""IQ4_NL: 32 weights in 18 bytes: f16 d, then 16 bytes of nibbles as in Q4_0 that index a table.

Weight = d * VALUES[q]. Table: kvalues_iq4nl in ggml-common.h.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.simd import make_lookup
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x16, low_f16, shifted_twice

LAYOUT = Layout(block_size=32, type_size=18, largest=127, is_signed=True)
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
lookup = make_lookup(VALUES)


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    return lookup(shifted_twice(load_i8x16(w, 2), 0, 4) & 15)


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 0)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
