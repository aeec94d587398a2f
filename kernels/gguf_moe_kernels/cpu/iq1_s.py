"""IQ1_S: 256 weights in 50 bytes: f16 d, 32 bytes of indices, an u16 for each group of 32 weights.

An entry of the codebook is 8 of -1, 0, 1. The u16 has 3 high bits for each of four indices, 3 bits of scale,
and the sign of a shift: weight = d / 8 * (2 scale + 1) * (8 entry +- 1).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gguf_moe_kernels.codebooks import CODEBOOKS
from gguf_moe_kernels.cpu.bits import add_where
from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, all_bits_without, make_fields
from gguf_moe_kernels.cpu.codebook import make_codebook, odd, times
from gguf_moe_kernels.cpu.codebook_gathers import (
    HAS_GATHERS,
    make_bits_above,
    make_words,
    products_of_even_words,
    sixteen_bytes,
)
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_LARGE_OFFSETS,
    SIGNS,
    low_bytes_of,
    make_eights,
    make_field,
    make_shifted_products,
    store_i8x32,
    store_i16x32,
)
from gguf_moe_kernels.cpu.codebook_tables import (
    make_codes_of_11_bits,
    make_weights,
    products_of_shifted_codes,
)
from gguf_moe_kernels.cpu.lanes import column_0, column_1, column_2, column_3, gather_columns
from gguf_moe_kernels.cpu.memory import load_i64, load_u8, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x16, load_i8x32, low_f16
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=50, largest=18, offset=9)
EIGHTH = np.float32(0.125)
LOWEST = (8 * CODEBOOKS[GGMLType.IQ1_S] + 8).astype(np.int8)
"""What is stored where the shift is negative; two more where it is positive."""
HALVES = np.concatenate([LOWEST // 2 + 1, LOWEST // 2]).astype(np.uint8)
"""Halves of all that is stored: entries with a positive shift, and then with a negative one."""
entry_of = make_codebook(LOWEST)


@njit
def scales_of_two(words):
    """The scales in both halves of each lane, as bytes 0 and 1."""
    return words >> 12 & 7 | words >> 20 & 0x700


@njit
def unpack_header(places, apart, header):
    store_d(header, times(low_f16(gather_u16(places, apart, 0)), EIGHTH))
    words = gather_columns(places, apart, 34)
    first = scales_of_two(column_0(words)) | scales_of_two(column_1(words)) << 16
    second = scales_of_two(column_2(words)) | scales_of_two(column_3(words)) << 16
    store_scales(header, 0, as_bytes(odd(first)))
    store_scales(header, 1, as_bytes(odd(second)))


@njit
def quants(w, k):
    """The weights of groups 2k and 2k + 1 as bytes 0..18."""
    a, high = w + 2 + 8 * k, load_u32(w, 34 + 4 * k)
    entries = entry_of(
        load_u8(a, 0) | high << 8 & 0x700,
        load_u8(a, 1) | high << 5 & 0x700,
        load_u8(a, 2) | high << 2 & 0x700,
        load_u8(a, 3) | high >> 1 & 0x700,
        load_u8(a, 4) | high >> 8 & 0x700,
        load_u8(a, 5) | high >> 11 & 0x700,
        load_u8(a, 6) | high >> 14 & 0x700,
        load_u8(a, 7) | high >> 17 & 0x700,
    )
    positive = (high & 0x80008000) ^ 0x80008000
    return add_where(entries, (positive >> 15 & 1 | positive << 1 & 1 << 32) * 0xFFFFFFFF, 2)


meeting = None
if HAS_GATHERS:
    three_bits = make_bits_above([16 * (i // 4) + 3 * (i % 4) for i in range(16)])
    shift_sign = make_bits_above([16 * (i // 4) + 12 for i in range(16)])

    @njit
    def indices(w, k):
        """With the sign of the shift as bit 11."""
        high = load_i64(w, 34 + 8 * k)
        above = three_bits(high) & 0x700 | shift_sign(high) & 0x800
        return sixteen_bytes(w, 2 + 16 * k) | above

    meeting = products_of_even_words(LAYOUT, make_words(HALVES), indices)

elif HAS_LARGE_OFFSETS:
    low_bits = make_field(8, 1, [2], 0x1FE)
    high_bits = make_field(16, 4, [512, 64, 8, 1], 0xE00)
    signs = make_field(16, 4, [1], 0x8000)

    @njit
    def prepare(w, scratch):
        store_i16x32(scratch, 0, low_bits(w + 2) | high_bits(w + 34))
        store_i8x32(scratch, SIGNS, low_bytes_of(((signs(w + 34) >> 15) * -2) + 2))

    meeting = make_shifted_products(LAYOUT, make_eights(LOWEST, 4), prepare)

elif HAS_TABLES:  # with many tokens reading entries is faster
    weights_of, codes_at = make_weights(LOWEST), make_codes_of_11_bits(LOWEST)
    high_bits, signs_of_shifts = make_fields([0, 3, 6, 9, 16, 19, 22, 25]), make_fields([8] * 4 + [24] * 4)

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        indices = join(load_i8x32(w, 2), load_i8x32(v, 2))
        return codes_at(indices, high_bits(join(load_i8x16(w, 34), load_i8x16(v, 34))))

    @njit
    def shifts(w, v):
        """All bits of a byte for each entry whose shift is positive."""
        return all_bits_without(signs_of_shifts(join(load_i8x16(w, 34), load_i8x16(v, 34))), 128)

    meeting = products_of_shifted_codes(LAYOUT, codes, weights_of, shifts)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
