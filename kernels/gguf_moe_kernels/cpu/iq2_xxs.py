"""IQ2_XXS: 256 weights in 66 bytes: f16 d, then 8 bytes for each group of 32 weights.

Of a group's bytes four are indices of codebook entries, and an u32 has four 7-bit fields of signs and in its
highest 4 bits a scale: weight = d / 8 * (2 scale + 1) * sign * entry.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gguf_moe_kernels.codebooks import CODEBOOKS
from gguf_moe_kernels.cpu.bits import negative_where
from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, even_fours, odd_fours
from gguf_moe_kernels.cpu.codebook import even_signs, make_codebook, odd, times
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_OFFSETS,
    SIGNS,
    even_fours_widened,
    make_eights,
    make_signed_products,
    seven_bits,
    store_i8x32,
    store_i16x32,
    with_even_signs,
)
from gguf_moe_kernels.cpu.codebook_tables import (
    SEVEN_BITS,
    make_codes,
    make_even_signs,
    make_quants,
    make_weights,
    products_of_signed_codes,
)
from gguf_moe_kernels.cpu.lanes import column_1, column_3, gather_columns
from gguf_moe_kernels.cpu.memory import load_u8, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, load_i8x64, low_f16
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=66, largest=43, is_signed=True)
EIGHTH = np.float32(0.125)


@njit
def unpack_header(places, apart, header):
    store_d(header, times(low_f16(gather_u16(places, apart, 0)), EIGHTH))
    for c in range(2):
        a, b = gather_columns(places, apart, 2 + 32 * c), gather_columns(places, apart, 18 + 32 * c)
        scales = (
            column_1(a) >> 28 | column_3(a) >> 28 << 8 | column_1(b) >> 28 << 16 | column_3(b) >> 28 << 24
        )
        store_scales(header, c, as_bytes(odd(scales)))


meeting = None
if HAS_TABLES:
    # Four bytes of two blocks take turns.
    firsts = [8 * (i // 4) + i % 4 for i in range(32)]
    seconds = [place + 4 for place in firsts]
    codes_at = make_codes(CODEBOOKS[GGMLType.IQ2_XXS], firsts, seconds)
    signs_of = make_even_signs(SEVEN_BITS, firsts + seconds)

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        return codes_at(even_fours(load_i8x64(w, 2), load_i8x64(v, 2)), 0, 0, 0)

    @njit
    def signs(w, v):
        """The signs of w's weights, a bit each, and then of v's."""
        return signs_of(odd_fours(load_i8x64(w, 2), load_i8x64(v, 2)))

    weights_of = make_weights(CODEBOOKS[GGMLType.IQ2_XXS])
    quants = make_quants(codes, weights_of, signs)
    meeting = products_of_signed_codes(LAYOUT, codes, weights_of, signs)

else:
    entry_of = make_codebook(CODEBOOKS[GGMLType.IQ2_XXS])

    @njit
    def quants(w, k):
        """The weights of groups 2k and 2k + 1 as signed bytes."""
        a = w + 2 + 16 * k
        b = a + 8
        entries = entry_of(
            load_u8(a, 0), load_u8(a, 1), load_u8(a, 2), load_u8(a, 3),
            load_u8(b, 0), load_u8(b, 1), load_u8(b, 2), load_u8(b, 3),
        )  # fmt: skip
        return negative_where(entries, even_signs(load_u32(a, 4), load_u32(b, 4)))


if HAS_OFFSETS:

    @njit
    def prepare(w, scratch):
        store_i16x32(scratch, 0, even_fours_widened(w + 2))
        store_i8x32(scratch, SIGNS, with_even_signs(seven_bits(w + 6, 8)))

    meeting = make_signed_products(LAYOUT, make_eights(CODEBOOKS[GGMLType.IQ2_XXS], 8), prepare)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
