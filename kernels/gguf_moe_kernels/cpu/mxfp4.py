"""MXFP4: 32 weights in 17 bytes: an exponent byte e, then 16 bytes of nibbles as in Q4_0 that index a table.

Weight = 2^(e - 128) * VALUES[q]: the table holds twice the e2m1 values, so the scale is half of 2^(e - 127).
Table: kvalues_mxfp4 in ggml-common.h; scale: ggml_e8m0_to_fp32_half in ggml-impl.h.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import float_from_bits, fma, to_float
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_u8
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

TYPE_SIZE = 17
VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
lookup = make_lookup(VALUES)


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    packed = load_i8x16(w, 1)
    return lookup(join_halves(packed & 15, packed >> 4))


@njit
def block_scale(w):
    """2^(e - 128) as float32; e of 0 and 1 give subnormal numbers."""
    e = load_u8(w, 0)
    return float_from_bits((e - 1) << 23 if e >= 2 else 0x200000 << e)


@njit
def add_block(acc, w, q, d, sums):
    total = dot_i8_i8(quants(w), load_i8x32(q, 0))
    return fma(block_scale(w) * d, to_float(total), acc)


tile = make_tile(make_dot_blocks(add_block, 32, TYPE_SIZE, 0))


@kernel
def dequantize(row, out, n):
    for ib in range(n // 32):
        w = row + ib * TYPE_SIZE
        store_f32x32(out, 128 * ib, scale(quants(w), block_scale(w)))
    return 0
