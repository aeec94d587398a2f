"""Q3_K: 256 weights in 110 bytes: 32 bytes of third bits, 64 bytes of low 2 bits, 12 bytes of scales, f16 d.

Group j of 16 weights: weight = d * (scale[j] - 32) * (q - 4). The low bits lie as in Q2_K; the third bit of
the i-th 32 weights is bit i of each of the 32 bytes. Scales have 6 bits: the low four are nibbles (j and
j + 8 share byte j), the high two are bits 2 (j / 4) of byte 8 + j % 4.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, gather_u32, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, load_i8x32, low_f16, shifted_twice

LAYOUT = Layout(block_size=256, type_size=110, largest=7, group=16, offset=4, has_signed_scales=True)


@njit
def unpack_header(places, apart, header):
    a, b, c = (
        as_bytes(gather_u32(places, apart, 96)),
        as_bytes(gather_u32(places, apart, 100)),
        as_bytes(gather_u32(places, apart, 104)),
    )
    store_scales(header, 0, ((a & 15) | (c << 4 & 48)) - 32)
    store_scales(header, 1, ((b & 15) | (c << 2 & 48)) - 32)
    store_scales(header, 2, ((a >> 4) | (c & 48)) - 32)
    store_scales(header, 3, ((b >> 4) | (c >> 2 & 48)) - 32)
    store_d(header, low_f16(gather_u16(places, apart, 108)))


@njit
def quants(w, k):
    """Weights 64k .. 64k + 63 as bytes 0..7."""
    half, part = k // 2, k % 2
    low = shifted_twice(load_i8x32(w, 32 + 32 * half), 4 * part, 4 * part + 2) & 3
    third = shifted_twice(load_i8x32(w, 0), 2 * k, 2 * k + 1) & 1
    return low | (third << 2)


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
