"""Q6_K: 256 weights in 210 bytes: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 int8 scales, f16 d.

Group j of 16 weights: weight = d * scale[j] * (q - 32). Half h has 64 nibble bytes and 32 high-bit bytes: its
first 64 weights are their low nibbles, the next 64 the high ones; the i-th 32 weights take bits 2i, 2i + 1.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16, load_i8, load_i16
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

TYPE_SIZE = 210


@njit
def quants(w, i):
    """Weights 32i .. 32i + 31 as bytes 0..63."""
    half, part = i // 4, i % 4
    low = (load_i8x32(w, 64 * half + 32 * (part % 2)) >> (4 * (part // 2))) & 15
    return low | (((load_i8x32(w, 128 + 32 * half) >> (2 * part)) & 3) << 4)


@njit
def add_block(acc, w, q, d, sums):
    total = 0
    for i in range(8):
        values = quants(w, i)
        low = dot_u8_i8(low_half(values), load_i8x16(q, 32 * i)) - 32 * load_i16(sums, 4 * i)
        high = dot_u8_i8(high_half(values), load_i8x16(q, 32 * i + 16)) - 32 * load_i16(sums, 4 * i + 2)
        total += load_i8(w, 192 + 2 * i) * low + load_i8(w, 193 + 2 * i) * high
    return fma(load_f16(w, 208) * d, to_float(total), acc)


tile = make_tile(make_dot_blocks(add_block, 256, TYPE_SIZE, 32))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 256):
        w, y = row + ib * TYPE_SIZE, out + ib * 1024
        d = load_f16(w, 208)
        for i in range(8):
            values = quants(w, i) - 32
            store_f32x16(y, 128 * i, scale(low_half(values), d * to_float(load_i8(w, 192 + 2 * i))))
            store_f32x16(y, 128 * i + 64, scale(high_half(values), d * to_float(load_i8(w, 193 + 2 * i))))
    return 0
