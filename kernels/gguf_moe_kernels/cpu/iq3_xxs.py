"""IQ3_XXS: 256 weights in 98 bytes: f16 d, 64 bytes of indices, an u32 for each group of 32 weights.

Each index is of a codebook entry of 4 weights. The u32 has four 7-bit fields of signs and in its highest
4 bits a scale: weight = d / 4 * (2 scale + 1) * sign * entry.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gguf_moe_kernels.codebooks import CODEBOOKS
from gguf_moe_kernels.cpu.bits import negative_where
from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES
from gguf_moe_kernels.cpu.codebook import even_signs, make_codebook, odd, times
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_OFFSETS,
    SIGNS,
    make_field,
    make_fours,
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
from gguf_moe_kernels.cpu.lanes import column_0, column_1, column_2, column_3, gather_columns
from gguf_moe_kernels.cpu.memory import load_u8, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x32, load_i8x64, low_f16
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=98, largest=62, is_signed=True)
QUARTER = np.float32(0.25)


@njit
def unpack_header(places, apart, header):
    store_d(header, times(low_f16(gather_u16(places, apart, 0)), QUARTER))
    for c in range(2):
        a = gather_columns(places, apart, 66 + 16 * c)
        scales = (
            column_0(a) >> 28 | column_1(a) >> 28 << 8 | column_2(a) >> 28 << 16 | column_3(a) >> 28 << 24
        )
        store_scales(header, c, as_bytes(odd(scales)))


meeting = None
if HAS_TABLES:
    codes_at = make_codes(CODEBOOKS[GGMLType.IQ3_XXS])
    weights_of = make_weights(CODEBOOKS[GGMLType.IQ3_XXS])
    signs_of = make_even_signs(SEVEN_BITS)

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        return codes_at(load_i8x64(w, 2), 0, 0, 0), codes_at(load_i8x64(v, 2), 0, 0, 0)

    @njit
    def signs(w, v):
        """The signs of w's weights, a bit each, and then of v's."""
        return signs_of(join(load_i8x32(w, 66), load_i8x32(v, 66)))

    quants = make_quants(codes, weights_of, signs)
    meeting = products_of_signed_codes(LAYOUT, codes, weights_of, signs)

else:
    entry_of = make_codebook(CODEBOOKS[GGMLType.IQ3_XXS])

    @njit
    def entries_of(a):
        """The entries that the 8 bytes at a choose."""
        return entry_of(
            load_u8(a, 0), load_u8(a, 1), load_u8(a, 2), load_u8(a, 3),
            load_u8(a, 4), load_u8(a, 5), load_u8(a, 6), load_u8(a, 7),
        )  # fmt: skip

    @njit
    def quants(w, k):
        """The weights of groups 2k and 2k + 1 as signed bytes."""
        a = w + 2 + 16 * k
        entries = join(entries_of(a), entries_of(a + 8))
        return negative_where(entries, even_signs(load_u32(w, 66 + 8 * k), load_u32(w, 70 + 8 * k)))


if HAS_OFFSETS:
    low_bits = make_field(8, 1, [32], 0x1FE0)

    @njit
    def prepare(w, scratch):
        store_i16x32(scratch, 0, low_bits(w + 2))
        store_i16x32(scratch, 64, low_bits(w + 34))
        store_i8x32(scratch, SIGNS, with_even_signs(seven_bits(w + 66, 4)))

    meeting = make_signed_products(LAYOUT, make_fours(CODEBOOKS[GGMLType.IQ3_XXS]), prepare, 16)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
