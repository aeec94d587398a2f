"""Q3_K: 256 weights in 110 bytes: 32 bytes of third bits, 64 bytes of low 2 bits, 12 bytes of scales, f16 d.

Group j of 16 weights: weight = d * (scale[j] - 32) * (q - 4). The low bits lie as in Q2_K; the third bit of
the i-th 32 weights is bit i of each of the 32 bytes. Scales have 6 bits: the low four are nibbles (j and
j + 8 share byte j), the high two are bits 2 (j / 4) of byte 8 + j % 4.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16, load_i16, load_u8
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import (
    dot_u8_i8,
    high_half,
    load_i8x16,
    load_i8x32,
    low_half,
    scale,
    store_f32x16,
)

TYPE_SIZE = 110


@njit
def quants(w, i):
    """Weights 32i .. 32i + 31 as bytes 0..7."""
    low = (load_i8x32(w, 32 + 32 * (i // 4)) >> (2 * (i % 4))) & 3
    return low | (((load_i8x32(w, 0) >> i) & 1) << 2)


@njit
def group_scale(w, j):
    """The scale of group j, -32..31."""
    low = load_u8(w, 96 + j % 8) >> (4 * (j // 8)) & 15
    high = load_u8(w, 104 + j % 4) >> (2 * (j // 4)) & 3
    return (low | (high << 4)) - 32


@njit
def add_block(acc, w, q, d, sums):
    total = 0
    for i in range(8):
        values = quants(w, i)
        low = dot_u8_i8(low_half(values), load_i8x16(q, 32 * i)) - 4 * load_i16(sums, 4 * i)
        high = dot_u8_i8(high_half(values), load_i8x16(q, 32 * i + 16)) - 4 * load_i16(sums, 4 * i + 2)
        total += group_scale(w, 2 * i) * low + group_scale(w, 2 * i + 1) * high
    return fma(load_f16(w, 108) * d, to_float(total), acc)


tile = make_tile(make_dot_blocks(add_block, 256, TYPE_SIZE, 32))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 256):
        w, y = row + ib * TYPE_SIZE, out + ib * 1024
        d = load_f16(w, 108)
        for i in range(8):
            values = quants(w, i) - 4
            store_f32x16(y, 128 * i, scale(low_half(values), d * to_float(group_scale(w, 2 * i))))
            store_f32x16(y, 128 * i + 64, scale(high_half(values), d * to_float(group_scale(w, 2 * i + 1))))
    return 0
