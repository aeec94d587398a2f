"""Q8_0: 32 weights in 34 bytes: f16 d, then 32 int8 q. Weight = d * q."""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.block import Layout, gather_u16, make_dequantize, store_d
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import load_i8x32, low_f16

LAYOUT = Layout(block_size=32, type_size=34, is_signed=True)


@njit
def quants(w):
    """The 32 weights as signed bytes."""
    return load_i8x32(w, 2)


@njit
def unpack_header(places, apart, header):
    store_d(header, low_f16(gather_u16(places, apart, 0)))


tile = make_tile(quants, unpack_header, LAYOUT)
dequantize = make_dequantize(quants, unpack_header, LAYOUT)
