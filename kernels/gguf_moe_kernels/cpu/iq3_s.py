"""IQ3_S: 256 weights in 110 bytes: f16 d, 64 bytes of indices, 8 of ninth bits, 32 of signs, 4 of scales.

Each index is of a codebook entry of 4 weights. Nibble j of the scales is that of group j of 32 weights:
weight = d * (2 scale + 1) * sign * entry.
"""

from __future__ import annotations

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
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES
from gguf_moe_kernels.cpu.codebook import bytes_of_nibbles, make_codebook, odd
from gguf_moe_kernels.cpu.codebook_offsets import (
    HAS_OFFSETS,
    make_field,
    make_fours,
    make_signed_products,
    store_i16x32,
)
from gguf_moe_kernels.cpu.codebook_tables import (
    make_codes,
    make_quants,
    make_weights,
    products_of_signed_codes,
)
from gguf_moe_kernels.cpu.memory import load_i64, load_u8
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x32, load_i8x64, low_f16
from gguf_moe_kernels.quants import GGMLType

LAYOUT = Layout(block_size=256, type_size=110, largest=30, offset=15)


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 0)))
    scales = gather_u32(places, apart, 106)
    store_scales(header, 0, as_bytes(odd(bytes_of_nibbles(scales))))
    store_scales(header, 1, as_bytes(odd(bytes_of_nibbles(scales >> 16))))


meeting = None
if HAS_TABLES:
    codes_at = make_codes(CODEBOOKS[GGMLType.IQ3_S])
    weights_of = make_weights(CODEBOOKS[GGMLType.IQ3_S])

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        of_w = codes_at(load_i8x64(w, 2), load_i64(w, 66), 0, 0)
        return of_w, codes_at(load_i8x64(v, 2), load_i64(v, 66), 0, 0)

    @njit
    def signs(w, v):
        """The signs of w's weights, a bit each, and then of v's."""
        return join(load_i8x32(w, 74), load_i8x32(v, 74))

    signed_quants = make_quants(codes, weights_of, signs)
    meeting = products_of_signed_codes(LAYOUT, codes, weights_of, signs)

    @njit
    def quants(w, k):
        """The weights of groups 2k and 2k + 1 as bytes 0..30."""
        return signed_quants(w, k) + 15

else:
    entry_of = make_codebook(CODEBOOKS[GGMLType.IQ3_S])

    @njit
    def entries_of(a, high):
        """The entries that the 8 bytes at a choose, with the bits of `high` above them."""
        return entry_of(
            load_u8(a, 0) | high << 8 & 256,
            load_u8(a, 1) | high << 7 & 256,
            load_u8(a, 2) | high << 6 & 256,
            load_u8(a, 3) | high << 5 & 256,
            load_u8(a, 4) | high << 4 & 256,
            load_u8(a, 5) | high << 3 & 256,
            load_u8(a, 6) | high << 2 & 256,
            load_u8(a, 7) | high << 1 & 256,
        )

    @njit
    def quants(w, k):
        """The weights of groups 2k and 2k + 1 as bytes 0..30."""
        a = w + 2 + 16 * k
        low, high = entries_of(a, load_u8(w, 66 + 2 * k)), entries_of(a + 8, load_u8(w, 67 + 2 * k))
        return negative_where(join(low, high), load_i64(w, 74 + 8 * k)) + 15


if HAS_OFFSETS:
    low_bits = make_field(8, 1, [32], 0x1FE0)
    ninth = make_field(8, 8, [1 << 13 - i for i in range(8)], 0x2000)

    @njit
    def prepare(w, scratch):
        store_i16x32(scratch, 0, low_bits(w + 2) | ninth(w + 66))
        store_i16x32(scratch, 64, low_bits(w + 34) | ninth(w + 70))

    meeting = make_signed_products(LAYOUT, make_fours(CODEBOOKS[GGMLType.IQ3_S]), prepare, 16, signs=74)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
