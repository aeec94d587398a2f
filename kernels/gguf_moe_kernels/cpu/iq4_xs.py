"""IQ4_XS: 256 weights in 136 bytes: f16 d, u16 high scale bits, 4 bytes of low scale bits, 128 nibble bytes.

Group j of 32 weights: weight = d * (scale[j] - 32) * VALUES[q], the table of IQ4_NL. The group's 16 bytes
hold q[l] in the low and q[l + 16] in the high nibble.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u32, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.iq4_nl import VALUES
from gguf_moe_kernels.cpu.simd import make_lookup
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, join, load_i8x16, low_f16, shifted_twice

LAYOUT = Layout(block_size=256, type_size=136, largest=127, is_signed=True, has_signed_scales=True)
lookup = make_lookup(VALUES)


@njit
def unpack_header(places, apart, header):
    first = gather_u32(places, apart, 0)
    store_d(header, low_f16(first))
    high = first >> 16
    low = gather_u32(places, apart, 4)
    # Every second nibble of `low` and two bits of `high` for each byte of four scales.
    for c in range(2):
        nibbles = low >> (16 * c)
        pairs = high >> (8 * c)
        scales = (
            (nibbles & 0xF) | (nibbles << 4 & 0xF00) | (nibbles << 8 & 0xF0000) | (nibbles << 12 & 0xF000000)
        )
        scales = scales | (pairs << 4 & 0x30)
        scales = scales | (pairs << 10 & 0x3000)
        scales = scales | (pairs << 16 & 0x300000)
        scales = scales | (pairs << 22 & 0x30000000)
        store_scales(header, c, as_bytes(scales) - 32)


@njit
def quants(w, k):
    """The weights of groups 2k and 2k + 1 as signed bytes."""
    first = shifted_twice(load_i8x16(w, 8 + 32 * k), 0, 4)
    second = shifted_twice(load_i8x16(w, 24 + 32 * k), 0, 4)
    return lookup(join(first, second) & 15)


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
