"""IQ4_XS: 256 weights in 136 bytes: f16 d, u16 high scale bits, 4 bytes of low scale bits, 128 nibble bytes.

Group j of 32 weights: weight = d * (scale[j] - 32) * VALUES[q], the table of IQ4_NL. The group's 16 bytes
hold q[l] in the low and q[l + 16] in the high nibble.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.iq4_nl import lookup
from gguf_moe_kernels.cpu.memory import load_f16, load_u8, load_u16
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import dot_i8_i8, join_halves, load_i8x16, load_i8x32, scale, store_f32x32

TYPE_SIZE = 136


@njit
def quants(w, j):
    """The 32 weights of group j as signed bytes."""
    packed = load_i8x16(w, 8 + 16 * j)
    return lookup(join_halves(packed & 15, packed >> 4))


@njit
def group_scale(w, j):
    """The scale of group j, -32..31."""
    low = load_u8(w, 4 + j // 2) >> (4 * (j % 2)) & 15
    high = load_u16(w, 2) >> (2 * j) & 3
    return (low | (high << 4)) - 32


@njit
def add_block(acc, w, q, d, sums):
    total = 0
    for j in range(8):
        total += group_scale(w, j) * dot_i8_i8(quants(w, j), load_i8x32(q, 32 * j))
    return fma(load_f16(w, 0) * d, to_float(total), acc)


tile = make_tile(make_dot_blocks(add_block, 256, TYPE_SIZE, 32))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 256):
        w = row + ib * TYPE_SIZE
        for j in range(8):
            d = load_f16(w, 0) * to_float(group_scale(w, j))
            store_f32x32(out + ib * 1024, 128 * j, scale(quants(w, j), d))
    return 0
