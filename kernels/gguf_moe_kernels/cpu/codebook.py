"""Entries of a codebook by their indices, signs from bits, and the small scales of the types that use them.

Reading entries one by one and joining them is faster on most CPUs than their gather instructions, and is
the same on every tier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import I8, I32, I64
from gguf_moe_kernels.cpu.vector import Vector, f32x16, i8x32, i8x64, splat

BYTE_ONES = 0x0101010101010101


def constant_bytes(builder: ir.IRBuilder, content: bytes) -> ir.Value:
    """The address of bytes that are part of a kernel's code; they begin on a cache line."""
    name = f"bytes.{hashlib.sha256(content).hexdigest()}"
    constant = builder.module.globals.get(name)
    if constant is None:
        value = ir.Constant(ir.ArrayType(I8, len(content)), bytearray(content))
        constant = cgutils.global_constant(builder.module, name, value)
        constant.align = 64
    return builder.bitcast(constant, I8.as_pointer())


def make_codebook(entries: np.ndarray) -> Callable[..., Any]:
    """An intrinsic entry_of(i0, ..., i7): eight entries of an int8 [n, width] table, one after the other.

    i8x64 where the width is 8, i8x32 where it is 4. Indices are not checked.
    """
    n, width = entries.shape
    word = ir.IntType(8 * width)
    values = np.ascontiguousarray(entries).view(f"<u{width}").ravel().tolist()
    name = f"codebook.{hashlib.sha256(entries.tobytes()).hexdigest()}"
    result: Vector = i8x64 if width == 8 else i8x32

    @intrinsic
    def entry_of(typingctx, i0, i1, i2, i3, i4, i5, i6, i7):
        def codegen(context, builder, sig, args):
            table_type = ir.ArrayType(word, n)
            table = builder.module.globals.get(name)
            if table is None:
                table = cgutils.global_constant(builder.module, name, ir.Constant(table_type, values))
            words: ir.Value = ir.Constant(ir.VectorType(word, 8), ir.Undefined)
            for lane, index in enumerate(args):
                value = builder.load(builder.gep(table, [ir.Constant(I64, 0), index]))
                words = builder.insert_element(words, value, ir.Constant(I32, lane))
            return builder.bitcast(words, result.llvm)

        return result(*[types.int64] * 8), codegen

    return entry_of


@intrinsic
def times(typingctx, v, factor):
    """factor * v in each lane, float32."""

    def codegen(context, builder, sig, args):
        return builder.fmul(args[0], splat(builder, args[1], 16))

    return f32x16(f32x16, types.float32), codegen


@njit
def _bytes_of_7_bits(packed):
    """The four lowest 7-bit fields of `packed`, one byte each."""
    return packed & 0x7F | packed << 1 & 0x7F00 | packed << 2 & 0x7F0000 | packed << 3 & 0x7F000000


@njit
def even_signs(low, high):
    """64 signs from eight 7-bit fields, four in each argument: an even number of each eight bits is 1."""
    signs = _bytes_of_7_bits(low) | _bytes_of_7_bits(high) << 32
    parity = signs ^ signs >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    return signs | (parity & BYTE_ONES) << 7


@njit
def bytes_of_nibbles(packed):
    """The four lowest nibbles of each int32 lane, one byte each."""
    return packed & 0xF | packed << 4 & 0xF00 | packed << 8 & 0xF0000 | packed << 12 & 0xF000000


@njit
def bytes_of_3_bits(packed):
    """The four lowest 3-bit fields of each int32 lane, one byte each."""
    return packed & 0x7 | packed << 5 & 0x700 | packed << 10 & 0x70000 | packed << 15 & 0x7000000


@njit
def odd(scales):
    """2 s + 1 of each byte of int32 lanes."""
    return (scales << 1) + 0x01010101
