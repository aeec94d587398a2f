"""Entries of a codebook by gathers, for CPUs where these are faster than loads one by one.

An entry of 8 small weights is a word of 32 bits: byte i has weight i in its low nibble and weight i + 4 in
the high one. So one gather takes 16 entries, or 128 weights, by indices that never leave their register. The
low nibbles meet the first four of each eight activations, the high ones the other four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from gguf_moe_kernels.codebooks import in_nibbles
from gguf_moe_kernels.cpu.bits import negative_where
from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.block_sums import Products, load_x
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, shift_bytes
from gguf_moe_kernels.cpu.codebook import constant_bytes
from gguf_moe_kernels.cpu.memory import I1, I8, I16, I32, load_i64, pointer
from gguf_moe_kernels.cpu.simd import dot_unsigned, make_lookup
from gguf_moe_kernels.cpu.target import Target
from gguf_moe_kernels.cpu.vector import (
    as_bytes,
    call,
    i8x64,
    i32x16,
    pick,
    splat,
    zero_i32x16,
)

HAS_GATHERS = HAS_TABLES and Target.numba().has("avx512fp16")
"""Intel's cores since Sapphire Rapids."""


def make_words(entries: np.ndarray) -> Callable[..., Any]:
    """An intrinsic words(indices): i32x16 of the words of entries, uint8 [n, 8] below 16. An i32x16 of
    indices, not checked."""
    content = in_nibbles(entries).tobytes()

    @intrinsic
    def words(typingctx, indices):
        def codegen(context, builder, sig, args):
            everywhere = ir.Constant(ir.VectorType(I1, 16), [1] * 16)
            zeros, size = ir.Constant(i32x16.llvm, [0] * 16), ir.Constant(I32, 4)
            operands = zeros, constant_bytes(builder, content), args[0], everywhere, size
            return call(builder, "llvm.x86.avx512.mask.gather.dpi.512", i32x16.llvm, operands)

        return i32x16(i32x16), codegen

    return words


def _make_sixteen(element: ir.IntType) -> Callable[..., Any]:
    @intrinsic
    def sixteen(typingctx, base, offset):
        def codegen(context, builder, sig, args):
            numbers = builder.load(pointer(builder, *args, ir.VectorType(element, 16)))
            numbers.align = 1
            return builder.zext(numbers, i32x16.llvm)

        return i32x16(types.int64, types.int64), codegen

    return sixteen


sixteen_bytes, sixteen_shorts = _make_sixteen(I8), _make_sixteen(I16)
"""16 unsigned numbers at an address, as int32 lanes."""


def make_bits_above(shifts: list[int]) -> Callable[..., Any]:
    """An intrinsic above(eight): lane i has the bits of an int64 from bit shifts[i] on as its bits 8 .. 15;
    the others are anything."""
    of_bytes = [shift for lane in shifts for shift in (0, lane, 0, 0)]

    @intrinsic
    def above(typingctx, eight):
        def codegen(context, builder, sig, args):
            bytes_ = builder.bitcast(splat(builder, args[0], 8), i8x64.llvm)
            return builder.bitcast(shift_bytes(builder, bytes_, of_bytes), i32x16.llvm)

        return i32x16(types.int64), codegen

    return above


def _make_fours(first: int) -> Callable[..., Any]:
    @intrinsic
    def fours(typingctx, v, w):
        def codegen(context, builder, sig, args):
            v, w = (builder.bitcast(each, i32x16.llvm) for each in args)
            return builder.bitcast(pick(builder, v, range(first, 32, 2), w), i8x64.llvm)

        return i8x64(i8x64, i8x64), codegen

    return fours


first_fours, last_fours = _make_fours(0), _make_fours(1)
"""Of each eight bytes of two i8x64, one after the other, the first four or the last."""


def products_of_even_words(
    layout: Layout, words: Callable[..., Any], indices: Callable[..., Any]
) -> Products:
    """Products of weights that are twice the nibbles of words(indices(w, k)), for part k of a block at w."""

    @njit
    def products(w, k, x):
        word = words(indices(w, k))
        low, high = as_bytes(word << 1 & 0x1E1E1E1E), as_bytes(word >> 3 & 0x1E1E1E1E)
        a, b = load_x(x, 0), load_x(x, 64)
        return (dot_unsigned(dot_unsigned(zero_i32x16(), low, first_fours(a, b)), high, last_fours(a, b)),)

    @njit
    def begin(w, v, scratch):
        return w, v

    return Products(layout, products, begin, part=128)


def products_of_signed_words(
    layout: Layout,
    entries: np.ndarray,
    indices: Callable[..., Any],
    begin: Callable[..., Any],
    scratch_size: int = 0,
) -> Products:
    """Products with the entries, int8 [n, 8], at indices(w, k). begin gives for each block (w, signs): where
    the signs stand, a bit for each weight. They go to the activations."""
    levels = np.unique(entries)
    words = make_words(np.searchsorted(levels, entries))
    weights = make_lookup((*(int(level) for level in levels), *[0] * (16 - len(levels))))

    @njit
    def products(shared, k, x):
        w, signs = shared
        word = words(indices(w, k))
        low, high = as_bytes(word & 0x0F0F0F0F), as_bytes(word >> 4 & 0x0F0F0F0F)
        a = negative_where(load_x(x, 0), load_i64(signs, 16 * k))
        b = negative_where(load_x(x, 64), load_i64(signs, 16 * k + 8))
        first = dot_unsigned(zero_i32x16(), weights(low), first_fours(a, b))
        return first, dot_unsigned(zero_i32x16(), weights(high), last_fours(a, b))

    unsigned = replace(layout, is_signed=False, offset=0)
    return Products(unsigned, products, begin, scratch_size, part=128, n_sums=2)
