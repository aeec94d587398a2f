"""Q6_K: 256 weights in 210 bytes: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 int8 scales, f16 d.

Group j of 16 weights: weight = d * scale[j] * (q - 32). Half h has 64 nibble bytes and 32 high-bit bytes: its
first 64 weights are their low nibbles, the next 64 the high ones; the i-th 32 weights take bits 2i, 2i + 1.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d, store_scales
from gguf_moe_kernels.cpu.lanes import column_0, column_1, column_2, column_3, gather_columns
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import as_bytes, load_i8x32, load_i8x64, low_f16, shifted_twice

LAYOUT = Layout(
    block_size=256, type_size=210, largest=63, group=16, offset=32, has_signed_scales=True, in_order=True
)


@njit
def unpack_header(places, apart, header):
    scales = gather_columns(places, apart, 192)
    store_scales(header, 0, as_bytes(column_0(scales)))
    store_scales(header, 1, as_bytes(column_1(scales)))
    store_scales(header, 2, as_bytes(column_2(scales)))
    store_scales(header, 3, as_bytes(column_3(scales)))
    store_d(header, low_f16(gather_u16(places, apart, 208)))


@njit
def quants(w, k):
    """Weights 64k .. 64k + 63 as bytes 0..63."""
    half, part = k // 2, k % 2
    low = load_i8x64(w, 64 * half) >> (4 * part) & 15
    high = shifted_twice(load_i8x32(w, 128 + 32 * half), 4 * part, 4 * part + 2) & 3
    return low | (high << 4)


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
