"""What the kernels of a quantized type are made of: its layout, and 16 of its blocks side by side.

A type's module has a LAYOUT and two functions:

    quants(w, k)      the 64 weights 64k .. 64k + 63 of the block at address w, one byte each (i8x64);
                      quants(w) in types whose blocks have 32 weights (i8x32)
                      quants(w, _) where these have two scales: those of the block at w and the next (i8x64)
    unpack_header(places, apart, header)
                      the scales of 16 blocks to the address `header`. Lane 4i + j is the block at the i-th of
                      the four addresses (int64) at `places`, plus j * apart.

Each weight is d * scale * (q - offset) - dmin * minimum. A *header* holds, always with one lane a block:

    D, DMIN     f32x16
    SCALES      a byte for each group: i32x16 number c has those of groups 4c .. 4c + 3
    MINIMUMS    likewise; both only in types of 256 weights

In types of 32 weights DMIN is what is added to every weight. Where their halves have a scale each, D is that
of the first half, DMIN that of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from gguf_moe_kernels.cpu.arithmetic import to_float
from gguf_moe_kernels.cpu.compile import Kernel, kernel
from gguf_moe_kernels.cpu.memory import (
    I16,
    I32,
    load_f32,
    load_i8,
    load_u8,
    make_gather,
    make_stack,
    store_f32,
    store_i64,
)
from gguf_moe_kernels.cpu.simd import (
    HAS_SHORT_SUMS,
    SIGNED_OFFSET,
    dot_signed,
    dot_unsigned,
    make_spread,
    signed,
)
from gguf_moe_kernels.cpu.vector import (
    i32x16,
    join,
    load_i32x16,
    store_f32x16,
    store_i8x64,
)

D, DMIN = 0, 64
SCALES = 128
MINIMUMS = SCALES + 4 * 64
HEADER_SIZE = MINIMUMS + 4 * 64
stack_header = make_stack(HEADER_SIZE)

gather_u8, gather_u16, gather_u32 = (make_gather(bits, i32x16) for bits in (8, 16, 32))


@dataclass(frozen=True)
class Layout:
    """What the kernels of a quantized type need to know besides its two functions."""

    block_size: int
    """Weights in a block: 32, or 256 for types whose groups have scales."""
    type_size: int
    """Bytes of a block."""
    group: int = 32
    """Weights with one scale."""
    largest: int = 128
    """The largest q, or |q|."""
    offset: int = 0
    """What to subtract from each q."""
    is_signed: bool = False
    """The q are signed bytes that use their whole range."""
    has_signed_scales: bool = False
    has_minimum: bool = False
    in_order: bool = False
    """For one token rows pass one after the other (in_order.py): faster where blocks take long to arrive."""
    header_step: int = 0
    """Bytes from a block's header to the next one's, where two blocks share their header; 0 elsewhere."""

    @property
    def has_two_scales(self) -> bool:
        """Whether both halves of a block of 32 weights have a scale."""
        return self.block_size == 32 and self.group == 16

    @property
    def is_large(self) -> bool:
        """Whether blocks have 256 weights."""
        return self.block_size == 256

    @property
    def whole_offset(self) -> int:
        """With what `signed` adds."""
        return SIGNED_OFFSET if self.is_signed else self.offset

    @property
    def dot(self) -> Callable[..., Any]:
        """The dot product of prepared quants with activations."""
        return dot_signed if self.is_signed else dot_unsigned

    def make_header_place(self) -> Callable[..., Any]:
        """header_place(w, i): the address of the header of block i, counted from an even one at w."""
        type_size, step = self.type_size, self.header_step or self.type_size

        @njit
        def header_place(w, i):
            return w + i // 2 * 2 * type_size + i % 2 * step

        return header_place

    def prepare(self, quants: Callable[..., Any]) -> Callable[..., Any]:
        """64 weights as `dot` wants them: prepared(w, k) of one block, or in types of 32 weights
        prepared(w, apart) of the block at w and the one `apart` bytes behind it."""
        is_signed = self.is_signed
        gives_64 = self.is_large or self.has_two_scales

        @njit
        def prepared(w, k):
            v = quants(w, k) if gives_64 else join(quants(w), quants(w + k))
            return signed(v) if is_signed else v

        return prepared

    def make_pair(self) -> Callable[..., Any]:
        """pair(header, j): of each lane's j-th 32 weights the factors of the sums of their activations.

        They are int16, one for each 16 weights: the minimums, or scales, which the offset then multiplies.
        """
        column = MINIMUMS if self.has_minimum else SCALES
        is_signed = self.has_signed_scales and not self.has_minimum
        of_two_groups = self.group == 16
        bytes_ = (0, 1) if of_two_groups else (0, 0)
        places: list[int | None]
        places = [None, bytes_[0], None, bytes_[1]] if is_signed else [bytes_[0], None, bytes_[1], None]
        spread = make_spread(_of_each_lane(places), 8 if is_signed else 0, I16)

        @njit
        def pair(header, j):
            first = 2 * j if of_two_groups else j  # the first group's number
            return spread(load_i32x16(header, column + first // 4 * 64) >> (8 * (first % 4)))

        return pair

    def make_group_scale(self) -> Callable[..., Any]:
        """group_scale(header, j): the scale of group j in each lane, as i32x16; or in each int16."""
        is_signed, element = self.has_signed_scales, I16 if HAS_SHORT_SUMS else I32
        n_zeros = element.width // 8 - 1
        of_element: list[int | None] = [*[None] * n_zeros, 0] if is_signed else [0, *[None] * n_zeros]
        places = _of_each_lane(of_element * (32 // element.width))
        spread = make_spread(places, 8 * n_zeros if is_signed else 0, element)

        @njit
        def group_scale(header, j):
            return spread(load_i32x16(header, SCALES + j // 4 * 64) >> (8 * (j % 4)))

        return group_scale


def _of_each_lane(places: list[int | None]) -> list[int | None]:
    """For make_spread: the same four places in each lane."""
    return [p if p is None else i // 4 * 4 + p for i, p in enumerate(places * 4)] * 4


@njit
def store_d(header, d):
    """The scale of each block."""
    store_f32x16(header, D, d)


@njit
def store_dmin(header, dmin):
    """The scale of the minimums; in types of 32 weights what is added to each weight."""
    store_f32x16(header, DMIN, dmin)


@njit
def store_scales(header, c, scales):
    """The scales of groups 4c .. 4c + 3: an i8x64 with 4 bytes for each lane."""
    store_i8x64(header, SCALES + 64 * c, scales)


@njit
def store_minimums(header, c, minimums):
    """The minimums of groups 4c .. 4c + 3: an i8x64 with 4 bytes for each lane."""
    store_i8x64(header, MINIMUMS + 64 * c, minimums)


def make_dequantize(quants: Callable[..., Any], unpack_header: Callable[..., Any], layout: Layout) -> Kernel:
    """dequantize(row, out, n): one row of n weights as float32."""
    block_size, type_size, group = layout.block_size, layout.type_size, layout.group
    has_scales, has_minimum = layout.is_large, layout.has_minimum
    offset, is_signed, has_signed_scales = layout.offset, layout.is_signed, layout.has_signed_scales
    stack_quants, stack_places = make_stack(64), make_stack(32)

    @njit
    def scale_and_addend(header, j):
        """Of the weights of group j in lane 0."""
        d, addend = load_f32(header, D), np.float32(0.0)
        if has_minimum:
            addend = load_f32(header, DMIN)
        if has_scales:
            at = j // 4 * 64 + j % 4
            scale = load_i8(header, SCALES + at) if has_signed_scales else load_u8(header, SCALES + at)
            d = d * to_float(scale)
            if has_minimum:
                addend = -(addend * to_float(load_u8(header, MINIMUMS + at)))
        return d, addend

    @kernel
    def dequantize(row, out, n):
        header, q, places = stack_header(), stack_quants(), stack_places()
        for start in range(0, n, block_size):
            w = row + start // block_size * type_size
            for i in range(4):
                store_i64(places, 8 * i, w)
            unpack_header(places, 0, header)
            for k in range((block_size + 63) // 64):
                store_i8x64(q, 0, quants(w, k) if has_scales else join(quants(w), quants(w)))
                for i in range(min(64, block_size)):
                    d, addend = scale_and_addend(header, (64 * k + i) // group)
                    value = load_i8(q, i) if is_signed else load_u8(q, i) - offset
                    weight = d * to_float(value)
                    if has_minimum:
                        weight += addend
                    store_f32(out, 4 * (start + 64 * k + i), weight)
        return 0

    return dequantize
