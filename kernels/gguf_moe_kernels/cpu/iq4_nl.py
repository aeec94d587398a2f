"""IQ4_NL: 32 weights in 18 bytes: f16 d, then 16 bytes of nibbles as in Q4_0 that index a table.

Weight = d * VALUES[q]. Table: kvalues_iq4nl in ggml-common.h.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import (
    dot_i8_i8,
    join_halves,
    load_i8x16,
    load_i8x32,
    make_lookup,
    scale,
    store_f32x32,
)

TYPE_SIZE = 18
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
lookup = make_lookup(VALUES)


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    packed = load_i8x16(w, 2)
    return lookup(join_halves(packed & 15, packed >> 4))


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
