"""How a row of the KV cache holds its elements: float16, float32, or blocks of 32 as in Q8_0 (q8_0.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu.activation import LIMIT, inverse_scale, largest, quantize_block
from gguf_moe_kernels.cpu.arithmetic import to_float
from gguf_moe_kernels.cpu.memory import load_f16, load_f32, load_i8, store_f16, store_f32
from gguf_moe_kernels.cpu.vector import load_f16x32, load_f32x32, load_q8_0x32

Q8_0_BLOCK, Q8_0_SIZE = 32, 34
"""Elements of a block, and its bytes: float16 d, then int8."""


@dataclass(frozen=True)
class Elements:
    """What attention and the store into the cache need to know of a type. Elements count from `row`."""

    nbytes: Callable[..., Any]
    """nbytes(n): of n elements; in Q8_0 whole blocks."""
    load_32: Callable[..., Any]
    """load_32(row, i): elements i .. i + 31 as f32x32; i is a multiple of 32."""
    load: Callable[..., Any]
    """load(row, i): element i as float32."""
    store: Callable[..., Any]
    """store(row, x, n): a row of n float32."""


def _make_floats(
    load_32: Callable[..., Any], load_1: Callable[..., Any], store_1: Callable[..., Any], size: int
) -> Elements:
    """Elements of `size` bytes each."""

    @njit
    def nbytes(n):
        return n * size

    @njit
    def load_some(row, i):
        return load_32(row, i * size)

    @njit
    def load(row, i):
        return load_1(row, i * size)

    @njit
    def store(row, x, n):
        for i in range(n):
            store_1(row, i * size, load_f32(x, 4 * i))

    return Elements(nbytes, load_some, load, store)


@njit
def _q8_0_nbytes(n):
    return n // Q8_0_BLOCK * Q8_0_SIZE


@njit
def _q8_0_load_32(row, i):
    return load_q8_0x32(row, i // Q8_0_BLOCK * Q8_0_SIZE)


@njit
def _q8_0_load(row, i):
    block = i // Q8_0_BLOCK * Q8_0_SIZE
    return load_f16(row, block) * to_float(load_i8(row, block + 2 + i % Q8_0_BLOCK))


@njit
def _q8_0_store(row, x, n):
    for ib in range(n // Q8_0_BLOCK):
        block, values = row + ib * Q8_0_SIZE, x + 4 * ib * Q8_0_BLOCK
        amax = largest(values, Q8_0_BLOCK)
        quantize_block(values, Q8_0_BLOCK, inverse_scale(amax), block + 2)
        store_f16(block, 0, amax / LIMIT)


F16 = _make_floats(load_f16x32, load_f16, store_f16, 2)
F32 = _make_floats(load_f32x32, load_f32, store_f32, 4)
Q8_0 = Elements(_q8_0_nbytes, _q8_0_load_32, _q8_0_load, _q8_0_store)
