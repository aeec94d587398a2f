"""Q4_K: 256 weights in 144 bytes: f16 d, f16 dmin, 8 scales and 8 minimums of 6 bits each, 128 nibble bytes.

Group j of 32 weights: weight = d * scale[j] * q - dmin * minimum[j]. Groups 2i and 2i + 1 are the low and the
high nibbles of the i-th 32 bytes. The 12 bytes of scales: get_scale_min_k4 in ggml-quants.c.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import (
    Layout,
    make_dequantize,
    store_d,
    store_dmin,
    store_minimums,
    store_scales,
)
from gguf_moe_kernels.cpu.lanes import column_0, column_1, column_2, column_3, gather_columns
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, high_f16, load_i8x32, low_f16, shifted_twice

LAYOUT = Layout(block_size=256, type_size=144, largest=15, has_minimum=True)


@njit
def unpack_header(places, apart, header):
    columns = gather_columns(places, apart, 0)
    store_d(header, low_f16(column_0(columns)))
    store_dmin(header, high_f16(column_0(columns)))
    # Groups 0..3 stand in the low 6 bits of a and b; c has 4 bits of the others, a and b their high 2.
    a, b, c = as_bytes(column_1(columns)), as_bytes(column_2(columns)), as_bytes(column_3(columns))
    store_scales(header, 0, a & 63)
    store_scales(header, 1, (c & 15) | (a >> 2 & 48))
    store_minimums(header, 0, b & 63)
    store_minimums(header, 1, (c >> 4) | (b >> 2 & 48))


@njit
def quants(w, k):
    """The weights of groups 2k and 2k + 1 as bytes 0..15."""
    return shifted_twice(load_i8x32(w, 16 + 32 * k), 0, 4) & 15


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
