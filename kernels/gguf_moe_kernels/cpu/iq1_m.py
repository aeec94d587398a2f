"""IQ1_M: 256 weights in 56 bytes: 32 bytes of indices, a nibble for each of them, four u16 of scales.

The nibble has the 3 high bits of the index and the sign of the shift. An u16 has the 3-bit scales of four
groups of 16 weights, and above them 4 bits of the f16 d. The codebook and the weights are those of IQ1_S.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.bits import add_where
from gguf_moe_kernels.cpu.block import Layout, gather_u32, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.byte_tables import HAS_TABLES, all_bits_without, make_fields
from gguf_moe_kernels.cpu.codebook import bytes_of_3_bits, odd, times
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
from gguf_moe_kernels.cpu.iq1_s import EIGHTH, HALVES, LOWEST, entry_of
from gguf_moe_kernels.cpu.memory import load_i64, load_u8, load_u32
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x16, load_i8x32, low_f16

LAYOUT = Layout(block_size=256, type_size=56, largest=18, group=16, offset=9)


@njit
def unpack_header(places, apart, header):
    low, high = gather_u32(places, apart, 48), gather_u32(places, apart, 52)
    store_scales(header, 0, as_bytes(odd(bytes_of_3_bits(low))))
    store_scales(header, 1, as_bytes(odd(bytes_of_3_bits(low >> 16))))
    store_scales(header, 2, as_bytes(odd(bytes_of_3_bits(high))))
    store_scales(header, 3, as_bytes(odd(bytes_of_3_bits(high >> 16))))
    half = low >> 12 & 0xF | low >> 24 & 0xF0 | high >> 4 & 0xF00 | high >> 16 & 0xF000
    store_d(header, times(low_f16(half), EIGHTH))


@njit
def quants(w, k):
    """Weights 64k .. 64k + 63 as bytes 0..18."""
    a, high = w + 8 * k, load_u32(w, 32 + 4 * k)
    entries = entry_of(
        load_u8(a, 0) | high << 8 & 0x700,
        load_u8(a, 1) | high << 4 & 0x700,
        load_u8(a, 2) | high & 0x700,
        load_u8(a, 3) | high >> 4 & 0x700,
        load_u8(a, 4) | high >> 8 & 0x700,
        load_u8(a, 5) | high >> 12 & 0x700,
        load_u8(a, 6) | high >> 16 & 0x700,
        load_u8(a, 7) | high >> 20 & 0x700,
    )
    return add_where(entries, bytes_of_high_bits(high ^ 0x88888888), 2)


@njit
def bytes_of_high_bits(nibbles):
    """Eight bytes, with all bits set where the nibble's highest bit is."""
    bits = nibbles >> 3
    low = bits & 1 | bits << 4 & 1 << 8 | bits << 8 & 1 << 16 | bits << 12 & 1 << 24
    high = bits << 16 & 1 << 32 | bits << 20 & 1 << 40 | bits << 24 & 1 << 48 | bits << 28 & 1 << 56
    return (low | high) * 0xFF


meeting = None
if HAS_GATHERS:
    nibbles = make_bits_above([4 * i for i in range(16)])

    @njit
    def indices(w, k):
        """With the sign of the shift as bit 11."""
        return sixteen_bytes(w, 16 * k) | nibbles(load_i64(w, 32 + 8 * k)) & 0xF00

    meeting = products_of_even_words(LAYOUT, make_words(HALVES), indices)

elif HAS_LARGE_OFFSETS:
    low_bits = make_field(8, 1, [2], 0x1FE)
    nibbles = make_field(8, 2, [512, 32], 0x1E00)

    @njit
    def prepare(w, scratch):
        high = nibbles(w + 32)
        store_i16x32(scratch, 0, low_bits(w) | (high & 0xE00))
        store_i8x32(scratch, SIGNS, low_bytes_of(((high >> 12) * -2) + 2))

    meeting = make_shifted_products(LAYOUT, make_eights(LOWEST, 4), prepare)

elif HAS_TABLES:  # with many tokens reading entries is faster
    weights_of, codes_at = make_weights(LOWEST), make_codes_of_11_bits(LOWEST)
    nibbles = make_fields([*range(0, 32, 4)])

    @njit
    def codes(w, v):
        """Of two blocks the codes of their entries."""
        indices = join(load_i8x32(w, 0), load_i8x32(v, 0))
        return codes_at(indices, nibbles(join(load_i8x16(w, 32), load_i8x16(v, 32))))

    @njit
    def shifts(w, v):
        """All bits of a byte for each entry whose shift is positive."""
        return all_bits_without(nibbles(join(load_i8x16(w, 32), load_i8x16(v, 32))), 8)

    meeting = products_of_shifted_codes(LAYOUT, codes, weights_of, shifts)


tile = make_tile(quants, unpack_header, LAYOUT, meeting)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
