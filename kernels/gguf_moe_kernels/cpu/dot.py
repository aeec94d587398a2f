"""The defined order of every sum (DESIGN: "the same bits everywhere").

Float sums run in 32 lanes by index mod 32, ascending, one fma per element; the lanes are added by halves;
what is left beyond the last multiple of 32 goes to a scalar chain of fma that is added last.
Quantized sums run over blocks: each block adds its term to one of four partial sums by block index mod 4,
and the result is (s0 + s1) + (s2 + s3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from gguf_moe_kernels.cpu.arithmetic import fma
from gguf_moe_kernels.cpu.memory import load_f32
from gguf_moe_kernels.cpu.vector import add_f32x32, fma_f32x32, load_f32x32, sum_f32x32, zero_f32x32

ZERO = np.float32(0.0)


def make_dot_float(
    load_vector: Callable[..., Any], load_one: Callable[..., Any], size: int
) -> Callable[..., Any]:
    """dot(w, x, n): w is read with the given loads (`size` bytes an element), x is float32 [n]."""

    @njit
    def dot(w, x, n):
        whole = n // 32 * 32
        lanes = zero_f32x32()
        for i in range(0, whole, 32):
            lanes = fma_f32x32(load_vector(w, i * size), load_f32x32(x, i * 4), lanes)
        rest = ZERO
        for i in range(whole, n):
            rest = fma(load_one(w, i * size), load_f32(x, i * 4), rest)
        return sum_f32x32(lanes) + rest

    return dot


@njit
def sum_f32(x, n):
    """Sum of n float32 in the order of the dot product."""
    whole = n // 32 * 32
    lanes = zero_f32x32()
    for i in range(0, whole, 32):
        lanes = add_f32x32(lanes, load_f32x32(x, i * 4))
    rest = ZERO
    for i in range(whole, n):
        rest += load_f32(x, i * 4)
    return sum_f32x32(lanes) + rest


dot_f32 = make_dot_float(load_f32x32, load_f32, 4)


def make_dot_blocks(
    add_block: Callable[..., Any], block_size: int, type_size: int, sums_size: int
) -> Callable[..., Any]:
    """dot(w, x, n) of a quantized row w and a quantized activation row x (see activation.py for its planes).

    add_block(acc, w, q, d, sums) adds one block's term: w and q are addresses of the block's bytes and of its
    int8 activations, d is the activation's scale, `sums` the address of its sums (`sums_size` bytes a block).
    """

    @njit
    def dot(w, x, n):
        n_blocks = n // block_size
        scales = x + n
        sums = scales + 4 * n_blocks
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for ib in range(n_blocks):
            d = load_f32(scales, 4 * ib)
            term = add_block(s0, w + ib * type_size, x + ib * block_size, d, sums + ib * sums_size)
            s0, s1, s2, s3 = s1, s2, s3, term
        # The sums took turns in s0; turn on to where block 0's sum stands in s0 again.
        for _ in range(-n_blocks % 4):
            s0, s1, s2, s3 = s1, s2, s3, s0
        return (s0 + s1) + (s2 + s3)

    return dot
