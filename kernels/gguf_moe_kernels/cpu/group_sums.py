"""Sums of weights times the activations of several tokens, by the instructions of the CPU.

Both functions here take `quants`, the address of 4 weights a lane (int32) after the other, LANES_SIZE bytes
apart, and `q`, where the same block's int8 stand in a token's row. They add n times 4 products a lane, those
of int32 number `first` and of the following ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gguf_moe_kernels.cpu import tokens as by_token
from gguf_moe_kernels.cpu.block import Layout
from gguf_moe_kernels.cpu.simd import HAS_SHORT_SUMS
from gguf_moe_kernels.cpu.tokens import (
    LANES_SIZE,
    add_both_shorts,
    add_scaled,
    add_scaled_shorts,
    load_integers,
    make_shorts,
    zero_integers,
)

LARGEST_X = 127
"""The largest magnitude of an activation."""


def shorts_at_once(layout: Layout, n: int) -> int:
    """How many of n times two products fit into an int16 together: a power of two."""
    fitting, at_once = 32767 // (2 * layout.largest * LARGEST_X), 1
    while 2 * at_once <= min(fitting, n):
        at_once *= 2
    return at_once


def make_add_products(layout: Layout, n: int) -> Callable[..., Any]:
    """add_products(total, quants, first, tokens, q): total plus the products."""
    dot = by_token.dot_signed if layout.is_signed else by_token.dot_unsigned
    at_once = shorts_at_once(layout, n)
    shorts = make_shorts(at_once, layout.is_signed)

    @njit
    def add_products(total, quants, first, tokens, q):
        for i in range(first, first + n):
            total = dot(total, load_integers(quants, LANES_SIZE * i), tokens, q + 4 * i)
        return total

    @njit
    def add_short_products(total, quants, first, tokens, q):
        for i in range(first, first + n, at_once):
            total = add_both_shorts(total, shorts(total, quants + LANES_SIZE * i, tokens, q + 4 * i))
        return total

    return add_short_products if HAS_SHORT_SUMS else add_products


def make_add_scaled(layout: Layout, n: int) -> Callable[..., Any]:
    """add_scaled_products(total, quants, first, scale, tokens, q): total plus the products times `scale`.

    scale: the offset from `quants` to what Layout.make_group_scale gives, in ROWS lanes.
    """
    add_products, at_once = make_add_products(layout, n), shorts_at_once(layout, n)
    shorts = make_shorts(at_once, layout.is_signed)

    @njit
    def add_scaled_products(total, quants, first, scale, tokens, q):
        part = add_products(zero_integers(total), quants, first, tokens, q)
        return add_scaled(total, part, load_integers(quants, scale))

    @njit
    def add_scaled_short_products(total, quants, first, scale, tokens, q):
        for i in range(first, first + n, at_once):
            part = shorts(total, quants + LANES_SIZE * i, tokens, q + 4 * i)
            total = add_scaled_shorts(total, part, load_integers(quants, scale))
        return total

    return add_scaled_short_products if HAS_SHORT_SUMS else add_scaled_products
