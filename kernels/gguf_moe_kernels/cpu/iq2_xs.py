"""IQ2_XS: 256 weights in 74 bytes: f16 d, 32 u16 for 8 weights each, 8 bytes of scales.

The low 9 bits of an u16 are the index of a codebook entry, the high 7 its signs. Nibble j of the scales is
that of group j of 16 weights: weight = d / 8 * (2 scale + 1) * sign * entry.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gguf_moe_kernels.codebooks import CODEBOOKS
from gguf_moe_kernels.cpu.bits import negative_where
from gguf_moe_kernels.cpu.block import (
    Layout,
    gather_u16,
    gather_u32,
    make_dequantize,
    store_d,
    store_scales,
)
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, even_bytes, mask_of_bit, odd_bytes
from gguf_moe_kernels.cpu.codebook import bytes_of_nibbles, even_signs, make_codebook, odd, times
from gguf_moe_kernels.cpu.codebook_gathers import HAS_GATHERS, products_of_signed_words, sixteen_shorts
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_OFFSETS,
    SIGNS,
    low_bytes_of,
    make_eights,
    make_signed_products,
    store_i8x32,
    store_i16x32,
    with_even_signs,
)
from gguf_moe_kernels.cpu.codebook_tables import (
    make_codes,
    make_even_signs,
    make_quants,
    make_weights,
    products_of_signed_codes,
)
from gguf_moe_kernels.cpu.memory import load_i64
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, load_i8x64, load_i16x32, low_f16, store_i8x64
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=74, largest=43, group=16, is_signed=True)
EIGHTH = np.float32(0.125)


@njit
def unpack_header(places, apart, header):
    store_d(header, times(low_f16(gather_u16(places, apart, 0)), EIGHTH))
    for half in range(2):
        scales = gather_u32(places, apart, 66 + 4 * half)
        store_scales(header, 2 * half, as_bytes(odd(bytes_of_nibbles(scales))))
        store_scales(header, 2 * half + 1, as_bytes(odd(bytes_of_nibbles(scales >> 16))))


if HAS_TABLES:
    codes_at = make_codes(CODEBOOKS[GGMLType.IQ2_XS])
    weights_of = make_weights(CODEBOOKS[GGMLType.IQ2_XS])
    signs_of = make_even_signs([*range(1, 64, 8)])

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        a, b = load_i8x64(w, 2), load_i8x64(v, 2)
        return codes_at(even_bytes(a, b), mask_of_bit(odd_bytes(a, b), 1), 0, 0)

    @njit
    def signs(w, v):
        """The signs of w's weights, a bit each, and then of v's."""
        return signs_of(odd_bytes(load_i8x64(w, 2), load_i8x64(v, 2)))

    quants = make_quants(codes, weights_of, signs)

else:
    entry_of = make_codebook(CODEBOOKS[GGMLType.IQ2_XS])

    @njit
    def signs_of(four):
        """The four 7-bit fields above the indices, close together."""
        return four >> 9 & 0x7F | four >> 18 & 0x3F80 | four >> 27 & 0x1FC000 | four >> 36 & 0xFE00000

    @njit
    def quants(w, k):
        """Weights 64k .. 64k + 63 as signed bytes."""
        a, b = load_i64(w, 2 + 16 * k), load_i64(w, 10 + 16 * k)
        entries = entry_of(
            a & 511, a >> 16 & 511, a >> 32 & 511, a >> 48 & 511,
            b & 511, b >> 16 & 511, b >> 32 & 511, b >> 48 & 511,
        )  # fmt: skip
        return negative_where(entries, even_signs(signs_of(a), signs_of(b)))


meeting = None
if HAS_GATHERS:  # with many tokens tables stay faster

    @njit
    def indices(w, k):
        return sixteen_shorts(w, 2 + 32 * k) & 511

    @njit
    def begin(w, v, scratch):
        store_i8x64(scratch, 0, signs(w, v))
        return (w, scratch), (v, scratch + 32)

    meeting = products_of_signed_words(LAYOUT, CODEBOOKS[GGMLType.IQ2_XS], indices, begin, 64)

elif HAS_TABLES:
    meeting = products_of_signed_codes(LAYOUT, codes, weights_of, signs)

elif HAS_OFFSETS:

    @njit
    def prepare(w, scratch):
        words = load_i16x32(w, 2)
        store_i16x32(scratch, 0, words & 511)
        store_i8x32(scratch, SIGNS, with_even_signs(low_bytes_of(words >> 9)))

    meeting = make_signed_products(LAYOUT, make_eights(CODEBOOKS[GGMLType.IQ2_XS], 8), prepare)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
