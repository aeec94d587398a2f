"""Q5_K: 256 weights in 176 bytes: as Q4_K, with 32 bytes of fifth bits between the scales and the nibbles.

Bit j of fifth-bit byte l belongs to weight l of group j. Weight = d * scale[j] * q - dmin * minimum[j].
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, make_dequantize
from gguf_moe_kernels.cpu.q4_k import unpack_header
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x32, shifted_twice

LAYOUT = Layout(block_size=256, type_size=176, largest=31, has_minimum=True, in_order=True)


@njit
def quants(w, k):
    """The weights of groups 2k and 2k + 1 as bytes 0..31."""
    fifth = shifted_twice(load_i8x32(w, 16), 2 * k, 2 * k + 1) & 1
    return (shifted_twice(load_i8x32(w, 48 + 32 * k), 0, 4) & 15) | (fifth << 4)


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
