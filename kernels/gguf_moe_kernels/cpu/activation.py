"""Activations to int8 (ggml-quants.c: quantize_row_q8_0, q8_1, q8_K); the layout is in activations.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from gguf_moe_kernels import structs
from gguf_moe_kernels.constants import SMALLEST_AMAX
from gguf_moe_kernels.cpu.arithmetic import float_from_bits, round_even, to_float, to_int
from gguf_moe_kernels.cpu.compile import Kernel, op
from gguf_moe_kernels.cpu.half import f16_to_f32, f32_to_f16
from gguf_moe_kernels.cpu.memory import (
    load_f32,
    load_i64,
    load_u32,
    store_f32,
    store_i8,
    store_i16,
    store_i32,
)
from gguf_moe_kernels.cpu.parts import part_of

ZERO, ONE, LIMIT = np.float32(0.0), np.float32(1.0), np.float32(127.0)


@intrinsic
def round_f16(typingctx, x):
    """A float32 rounded to float16 and back."""

    def codegen(context, builder, signature, args):
        return f16_to_f32(builder, f32_to_f16(builder, args[0]))

    return types.float32(types.float32), codegen


@njit
def largest(x, n):
    """Largest magnitude of n float32; NaN if one of them is not finite, so that it is never lost."""
    bits = 0
    for j in range(n):
        bits = max(bits, load_u32(x, 4 * j) & 0x7FFFFFFF)
    amax = float_from_bits(bits)  # magnitudes are in the order of their bits: infinity and NaN come last
    return amax + (amax - amax)


@njit
def inverse_scale(amax):
    """What turns a block's values into int8; 0 if amax is too small or NaN."""
    return LIMIT / amax if amax >= SMALLEST_AMAX else ZERO


@njit
def quantize_block(x, n, inverse, out):
    """n int8 = round to even of x * inverse; their sum."""
    total = 0
    for j in range(n):
        q = to_int(round_even(load_f32(x, 4 * j) * inverse))
        store_i8(out, j, q)
        total += q
    return total


@njit
def quantize_part_q8_0(x, n, first, stop, out):
    """Activations first .. stop, whole blocks, of a row of n."""
    fours = (n // 32 + 3) // 4
    scales = out + 128 * fours
    for ib in range(first // 32, stop // 32):
        amax = largest(x + ib * 128, 32)
        total = quantize_block(x + ib * 128, 32, inverse_scale(amax), out + ib * 32)
        store_f32(scales, 4 * ib, round_f16(amax / LIMIT))
        store_i32(scales + 16 * fours, 4 * ib, total)


@njit
def quantize_part_q8_1(x, n, first, stop, out):
    """Activations first .. stop, whole blocks, of a row of n."""
    fours = (n // 32 + 3) // 4
    scales = out + 128 * fours
    for ib in range(first // 32, stop // 32):
        amax = largest(x + ib * 128, 32)
        d = amax / LIMIT
        total = quantize_block(x + ib * 128, 32, inverse_scale(amax), out + ib * 32)
        store_f32(scales, 4 * ib, round_f16(d))
        store_f32(scales + 16 * fours, 4 * ib, round_f16(d * to_float(total)))


@njit
def quantize_part_q8_k(x, n, first, stop, out):
    """Activations first .. stop, whole blocks, of a row of n."""
    fours = (n // 256 + 3) // 4
    scales = out + 1024 * fours
    for ib in range(first // 256, stop // 256):
        amax = largest(x + ib * 1024, 256)
        inverse = inverse_scale(amax)
        sums = scales + 16 * fours + ib // 4 * 128 + ib % 4 * 4
        for j in range(16):
            at = 256 * ib + 16 * j
            store_i16(sums, j // 2 * 16 + j % 2 * 2, quantize_block(x + 4 * at, 16, inverse, out + at))
        store_f32(scales, 4 * ib, ONE / inverse if inverse > ZERO else amax - amax)


def make_quantize(quantize_part: Callable[..., Any]) -> Kernel:
    """The quantize op of one format."""

    @op(structs.QUANTIZE)
    def quantize(args, chunk, thread):
        a = carray(args, 1)[0]
        row, first, stop = part_of(chunk, a.n)
        if row >= load_i64(a.rows, 0):
            return 0
        quantize_part(a.x + row * a.n * 4, a.n, first, stop, a.out + row * a.out_stride)
        return 1

    return quantize


def make_quantize_heads(quantize_part: Callable[..., Any]) -> Kernel:
    """The quantize_heads op of one format."""

    @op(structs.QUANTIZE_HEADS)
    def quantize_heads(args, chunk, thread):
        a = carray(args, 1)[0]
        if chunk >= load_i64(a.rows, 0):
            return 0
        for head in range(chunk * a.n_head, (chunk + 1) * a.n_head):
            quantize_part(a.x + head * a.width * 4, a.n, 0, a.n, a.out + head * a.out_stride)
        return 1

    return quantize_heads


PARTS = (quantize_part_q8_0, quantize_part_q8_1, quantize_part_q8_k)
quantize_q8_0, quantize_q8_1, quantize_q8_k = (make_quantize(part) for part in PARTS)
quantize_heads_q8_0, quantize_heads_q8_1, quantize_heads_q8_k = (make_quantize_heads(part) for part in PARTS)
