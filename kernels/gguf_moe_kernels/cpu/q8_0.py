"""Q8_0: 32 weights in 34 bytes: f16 d, then 32 int8 q. Weight = d * q."""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import dot_i8_i8, load_i8x32, scale, store_f32x32

TYPE_SIZE = 34


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    return load_i8x32(w, 2)


@njit
def add_block(acc, w, q, d, sums):
    total = dot_i8_i8(quants(w), load_i8x32(q, 0))
    return fma(load_f16(w, 0) * d, to_float(total), acc)


tile = make_tile(make_dot_blocks(add_block, 32, TYPE_SIZE, 0))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 32):
        w = row + ib * TYPE_SIZE
        store_f32x32(out, 128 * ib, scale(quants(w), load_f16(w, 0)))
    return 0
