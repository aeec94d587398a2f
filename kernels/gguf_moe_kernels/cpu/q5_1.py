"""Q5_1: 32 weights in 24 bytes: f16 d, f16 m, u32 with the fifth bits, 16 bytes of nibbles as in Q4_0.

Weight = d * q + m; the sum of m over a block is m times the sum of the activations (Q8_1).
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16, load_f32, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import (
    bits_to_bytes,
    dot_u8_i8,
    join_halves,
    load_i8x16,
    load_i8x32,
    offset,
    scale,
    store_f32x32,
)

TYPE_SIZE = 24


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    packed = load_i8x16(w, 8)
    return join_halves(packed & 15, packed >> 4) | (bits_to_bytes(load_u32(w, 4)) << 4)


@njit
def add_block(acc, w, q, d, sums):
    total = dot_u8_i8(quants(w), load_i8x32(q, 0))
    acc = fma(load_f16(w, 0) * d, to_float(total), acc)
    return fma(load_f16(w, 2), load_f32(sums, 0), acc)


tile = make_tile(make_dot_blocks(add_block, 32, TYPE_SIZE, 4))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 32):
        w = row + ib * TYPE_SIZE
        store_f32x32(out, 128 * ib, offset(scale(quants(w), load_f16(w, 0)), load_f16(w, 2)))
    return 0
