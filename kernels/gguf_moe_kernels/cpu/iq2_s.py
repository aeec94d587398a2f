"""IQ2_S: 256 weights in 82 bytes: f16 d, 32 bytes of indices, 32 of signs, 8 of high bits, 8 of scales.

Entry i of the codebook has 8 weights; its index is byte i with bits 2i and 2i + 1 of the high bits above it.
Nibble j of the 8 bytes of scales is that of group j of 16 weights: weight = d / 8 * (2 scale + 1) * sign *
entry.
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
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, mask_of_bit, pairs_of_bits
from gguf_moe_kernels.cpu.codebook import bytes_of_nibbles, make_codebook, odd, times
from gguf_moe_kernels.cpu.codebook_gathers import (
    HAS_GATHERS,
    make_bits_above,
    products_of_signed_words,
    sixteen_bytes,
)
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_OFFSETS,
    make_eights,
    make_field,
    make_signed_products,
    store_i16x32,
)
from gguf_moe_kernels.cpu.codebook_tables import (
    make_codes,
    make_quants,
    make_weights,
    products_of_signed_codes,
)
from gguf_moe_kernels.cpu.memory import load_i64, load_u8, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x32, low_f16
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=82, largest=43, group=16, is_signed=True)
EIGHTH = np.float32(0.125)


@njit
def unpack_header(places, apart, header):
    store_d(header, times(low_f16(gather_u16(places, apart, 0)), EIGHTH))
    for half in range(2):
        scales = gather_u32(places, apart, 74 + 4 * half)
        store_scales(header, 2 * half, as_bytes(odd(bytes_of_nibbles(scales))))
        store_scales(header, 2 * half + 1, as_bytes(odd(bytes_of_nibbles(scales >> 16))))


if HAS_TABLES:
    codes_at = make_codes(CODEBOOKS[GGMLType.IQ2_S])
    weights_of = make_weights(CODEBOOKS[GGMLType.IQ2_S])

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        indices = join(load_i8x32(w, 2), load_i8x32(v, 2))
        above = pairs_of_bits(load_i64(w, 66), load_i64(v, 66))
        return codes_at(indices, mask_of_bit(above, 1), mask_of_bit(above, 2), 0)

    @njit
    def signs(w, v):
        """The signs of w's weights, a bit each, and then of v's."""
        return join(load_i8x32(w, 34), load_i8x32(v, 34))

    quants = make_quants(codes, weights_of, signs)

else:
    entry_of = make_codebook(CODEBOOKS[GGMLType.IQ2_S])

    @njit
    def quants(w, k):
        """Weights 64k .. 64k + 63 as signed bytes."""
        a, b, c = w + 2 + 8 * k, load_u8(w, 66 + 2 * k), load_u8(w, 67 + 2 * k)
        entries = entry_of(
            load_u8(a, 0) | b << 8 & 0x300,
            load_u8(a, 1) | b << 6 & 0x300,
            load_u8(a, 2) | b << 4 & 0x300,
            load_u8(a, 3) | b << 2 & 0x300,
            load_u8(a, 4) | c << 8 & 0x300,
            load_u8(a, 5) | c << 6 & 0x300,
            load_u8(a, 6) | c << 4 & 0x300,
            load_u8(a, 7) | c << 2 & 0x300,
        )
        return negative_where(entries, load_i64(w, 34 + 8 * k))


meeting = None
if HAS_GATHERS:  # with many tokens tables stay faster
    pairs = make_bits_above([*range(0, 32, 2)])

    @njit
    def indices(w, k):
        return sixteen_bytes(w, 2 + 16 * k) | pairs(load_u32(w, 66 + 4 * k)) & 0x300

    @njit
    def begin(w, v, scratch):
        return (w, w + 34), (v, v + 34)

    meeting = products_of_signed_words(LAYOUT, CODEBOOKS[GGMLType.IQ2_S], indices, begin)

elif HAS_TABLES:
    meeting = products_of_signed_codes(LAYOUT, codes, weights_of, signs)

elif HAS_OFFSETS:
    low_bits = make_field(8, 1, [1], 0xFF)
    high_bits = make_field(8, 4, [256, 64, 16, 4], 0x300)

    @njit
    def prepare(w, scratch):
        store_i16x32(scratch, 0, low_bits(w + 2) | high_bits(w + 66))

    meeting = make_signed_products(LAYOUT, make_eights(CODEBOOKS[GGMLType.IQ2_S], 8), prepare, signs=34)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
