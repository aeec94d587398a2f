"""Q2_K: 256 weights in 84 bytes: 16 bytes of scales, 64 bytes of 2-bit q, f16 d, f16 dmin.

Group j of 16 weights: weight = d * (scales[j] & 15) * q - dmin * (scales[j] >> 4). The i-th 32 weights of a
half are bits 2i and 2i + 1 of the half's 32 bytes.
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
    offset,
    scale,
    store_f32x16,
)

TYPE_SIZE = 84


@njit
def quants(w, i):
    """Weights 32i .. 32i + 31 as bytes 0..3."""
    return (load_i8x32(w, 16 + 32 * (i // 4)) >> (2 * (i % 4))) & 3


@njit
def add_block(acc, w, q, d, sums):
    total, minimums = 0, 0
    for i in range(8):
        values = quants(w, i)
        low, high = load_u8(w, 2 * i), load_u8(w, 2 * i + 1)
        total += (low & 15) * dot_u8_i8(low_half(values), load_i8x16(q, 32 * i))
        total += (high & 15) * dot_u8_i8(high_half(values), load_i8x16(q, 32 * i + 16))
        minimums += (low >> 4) * load_i16(sums, 4 * i) + (high >> 4) * load_i16(sums, 4 * i + 2)
    acc = fma(load_f16(w, 80) * d, to_float(total), acc)
    return fma(load_f16(w, 82) * -d, to_float(minimums), acc)


tile = make_tile(make_dot_blocks(add_block, 256, TYPE_SIZE, 32))


@njit
def store_group(out, w, j, group):
    s = load_u8(w, j)
    d, dmin = load_f16(w, 80) * to_float(s & 15), load_f16(w, 82) * to_float(s >> 4)
    store_f32x16(out, 64 * j, offset(scale(group, d), -dmin))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 256):
        w, y = row + ib * TYPE_SIZE, out + ib * 1024
        for i in range(8):
            values = quants(w, i)
            store_group(y, w, 2 * i, low_half(values))
            store_group(y, w, 2 * i + 1, high_half(values))
    return 0
