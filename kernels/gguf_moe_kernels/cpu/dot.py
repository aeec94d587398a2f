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
from gguf_moe_kernels.cpu.vector import add_floats, fma_floats, load_f32x32, sum_f32x32, zero_f32x32

ZERO = np.float32(0.0)


def make_dot_float(
    load_vector: Callable[..., Any], load_one: Callable[..., Any], size: int
) -> Callable[..., Any]:
    """dot(w, x, n): w is read with the given loads (offsets go by `size` an element), x is float32 [n]."""

    @njit
    def dot(w, x, n):
        whole = n // 32 * 32
        lanes = zero_f32x32()
        for i in range(0, whole, 32):
            lanes = fma_floats(load_vector(w, i * size), load_f32x32(x, i * 4), lanes)
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
        lanes = add_floats(lanes, load_f32x32(x, i * 4))
    rest = ZERO
    for i in range(whole, n):
        rest += load_f32(x, i * 4)
    return sum_f32x32(lanes) + rest


dot_f32 = make_dot_float(load_f32x32, load_f32, 4)
