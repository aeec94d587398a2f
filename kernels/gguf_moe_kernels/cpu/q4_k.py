"""Q4_K: 256 weights in 144 bytes: f16 d, f16 dmin, 8 scales and 8 minimums of 6 bits each, 128 nibble bytes.

Group j of 32 weights: weight = d * scale[j] * q - dmin * minimum[j]. Groups 2i and 2i + 1 are the low and the
high nibbles of the i-th 32 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma, to_float
from gguf_moe_kernels.cpu.compile import Kernel, kernel
from gguf_moe_kernels.cpu.dot import make_dot_blocks
from gguf_moe_kernels.cpu.memory import load_f16, load_i16, load_u8
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import dot_u8_i8, load_i8x32, offset, scale, store_f32x32

TYPE_SIZE = 144


@njit
def scale_and_minimum(s, j):
    """The 6-bit scale and minimum of group j from the 12 bytes at s (get_scale_min_k4 in ggml-quants.c)."""
    if j < 4:
        return load_u8(s, j) & 63, load_u8(s, j + 4) & 63
    high, low = load_u8(s, j + 4), load_u8(s, j - 4)
    return (high & 15) | (low >> 6 << 4), (high >> 4) | (load_u8(s, j) >> 6 << 4)


@njit
def group_sum(sums, j):
    """Sum of the 32 activations of group j; Q8_K keeps sums of 16."""
    return load_i16(sums, 4 * j) + load_i16(sums, 4 * j + 2)


@njit
def quants(w, i):
    """The weights of groups 2i and 2i + 1 as bytes 0..15."""
    packed = load_i8x32(w, 16 + 32 * i)
    return packed & 15, packed >> 4


def make_add_block(quants: Callable[..., Any]) -> Callable[..., Any]:
    """add_block (see dot.py) for a type with Q4_K's header; quants(w, i) gives the bytes of two groups."""

    @njit
    def add_block(acc, w, q, d, sums):
        total, minimums = 0, 0
        for i in range(4):
            low, high = quants(w, i)
            scale_low, minimum_low = scale_and_minimum(w + 4, 2 * i)
            scale_high, minimum_high = scale_and_minimum(w + 4, 2 * i + 1)
            total += scale_low * dot_u8_i8(low, load_i8x32(q, 64 * i))
            total += scale_high * dot_u8_i8(high, load_i8x32(q, 64 * i + 32))
            minimums += minimum_low * group_sum(sums, 2 * i) + minimum_high * group_sum(sums, 2 * i + 1)
        acc = fma(load_f16(w, 0) * d, to_float(total), acc)
        return fma(load_f16(w, 2) * -d, to_float(minimums), acc)

    return add_block


def make_dequantize(quants: Callable[..., Any], type_size: int) -> Kernel:
    """The dequantize kernel for a type with Q4_K's header."""

    @njit
    def store_group(out, w, j, group):
        s, m = scale_and_minimum(w + 4, j)
        d, dmin = load_f16(w, 0) * to_float(s), load_f16(w, 2) * to_float(m)
        store_f32x32(out, 128 * j, offset(scale(group, d), -dmin))

    @kernel
    def dequantize(row, out, n):
        for ib in range(n // 256):
            w, y = row + ib * type_size, out + ib * 1024
            for i in range(4):
                low, high = quants(w, i)
                store_group(y, w, 2 * i, low)
                store_group(y, w, 2 * i + 1, high)
        return 0

    return dequantize


tile = make_tile(make_dot_blocks(make_add_block(quants), 256, TYPE_SIZE, 32))
dequantize = make_dequantize(quants, TYPE_SIZE)
