"""Q2_K: 256 weights in 84 bytes: 16 bytes of scales, 64 bytes of 2-bit q, f16 d, f16 dmin.

Group j of 16 weights: weight = d * (scales[j] & 15) * q - dmin * (scales[j] >> 4). The i-th 32 weights of a
half are bits 2i and 2i + 1 of the half's 32 bytes.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import (
    Layout,
    gather_u32,
    make_dequantize,
    store_d,
    store_dmin,
    store_minimums,
    store_scales,
)
from gguf_moe_kernels.cpu.lanes import column_0, column_1, column_2, column_3, gather_columns
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, high_f16, load_i8x32, low_f16, shifted_twice

LAYOUT = Layout(block_size=256, type_size=84, largest=3, group=16, has_minimum=True)


@njit
def store_group_scales(header, c, scales):
    store_scales(header, c, scales & 15)
    store_minimums(header, c, scales >> 4)


@njit
def unpack_header(places, apart, header):
    scales = gather_columns(places, apart, 0)
    store_group_scales(header, 0, as_bytes(column_0(scales)))
    store_group_scales(header, 1, as_bytes(column_1(scales)))
    store_group_scales(header, 2, as_bytes(column_2(scales)))
    store_group_scales(header, 3, as_bytes(column_3(scales)))
    d_and_dmin = gather_u32(places, apart, 80)
    store_d(header, low_f16(d_and_dmin))
    store_dmin(header, high_f16(d_and_dmin))


@njit
def quants(w, k):
    """Weights 64k .. 64k + 63 as bytes 0..3."""
    half, part = k // 2, k % 2
    return shifted_twice(load_i8x32(w, 16 + 32 * half), 4 * part, 4 * part + 2) & 3


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
