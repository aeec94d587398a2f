"""Q5_K: 256 weights in 176 bytes: as Q4_K, with 32 bytes of fifth bits between the scales and the nibbles.

Bit j of fifth-bit byte l belongs to weight l of group j. Weight = d * scale[j] * q - dmin * minimum[j].
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.q4_k import make_add_block, make_dequantize
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x32

TYPE_SIZE = 176


@njit
def quants(w, i):
    """The weights of groups 2i and 2i + 1 as bytes 0..31."""
    packed, fifth = load_i8x32(w, 48 + 32 * i), load_i8x32(w, 16) >> (2 * i)
    return (packed & 15) | ((fifth & 1) << 4), (packed >> 4) | (((fifth >> 1) & 1) << 4)


tile = make_tile(make_dot_blocks(make_add_block(quants), 256, TYPE_SIZE, 32))
dequantize = make_dequantize(quants, TYPE_SIZE)
