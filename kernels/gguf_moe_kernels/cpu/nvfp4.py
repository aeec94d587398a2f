"""NVFP4: 64 weights in 36 bytes: four bytes of scales, then 32 bytes of nibbles that index MXFP4's table.

Each 16 weights have a scale, and 8 bytes with the first 8 in the low nibbles. A scale has 4 bits of exponent
and 3 of mantissa, and no sign; 0x7F is 0 (ggml_ue4m3_to_fp32 in ggml-impl.h). Weight = scale / 2 * VALUES[q],
as the table holds twice the e2m1 values. Activations have 32 to a block; a *block* here is half of NVFP4's.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.arithmetic import float_from_bits, to_float
from gguf_moe_kernels.cpu.block import Layout, gather_u16, store_d, store_dmin
from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.memory import load_i8, load_u8, make_stack, store_f32
from gguf_moe_kernels.cpu.mxfp4 import VALUES
from gguf_moe_kernels.cpu.simd import make_lookup
from gguf_moe_kernels.cpu.tile import make_tile
from gguf_moe_kernels.cpu.vector import (
    float_bits,
    load_i8x32,
    multiply_floats,
    nibbles_by_eights,
    store_i8x64,
    to_floats,
)

OFFSET = 12
LAYOUT = Layout(block_size=32, type_size=18, largest=24, group=16, offset=OFFSET, header_step=2)
lookup = make_lookup(tuple(value + OFFSET for value in VALUES))
stack_quants = make_stack(64)


@njit
def scale_parts(x):
    """A scale is m * 2^(e - 127): m and e of its byte, a number or int32 lanes.

    Integers, because float32 of the same bits would be subnormal where the exponent is 0: these take some
    hundred cycles to multiply.
    """
    exponent, is_any = x >> 3 & 15, ((x - 0x7F & 0xFF) + 0xFF) >> 8
    is_normal = (exponent + 15) >> 4
    return ((x & 7) + (is_normal << 3)) * is_any, exponent - is_normal + 117


@njit
def scales_of(x):
    m, e = scale_parts(x)
    return multiply_floats(to_floats(m), float_bits(e << 23))


@njit
def unpack_header(places, apart, header):
    scales = gather_u16(places, apart, 0)
    store_d(header, scales_of(scales & 0xFF))
    store_dmin(header, scales_of(scales >> 8))


@njit
def quants(w, _):
    """64 weights as bytes 0..24."""
    return lookup(nibbles_by_eights(load_i8x32(w, 4)))


@kernel
def dequantize(row, out, n):
    q = stack_quants()
    for start in range(0, n, 64):
        w = row + start // 64 * 36
        store_i8x64(q, 0, quants(w, 0))
        for i in range(64):
            m, e = scale_parts(load_u8(w, i // 16))
            scale = to_float(m) * float_from_bits(e << 23)
            store_f32(out, 4 * (start + i), scale * to_float(load_i8(q, i) - OFFSET))
    return 0


tile = make_tile(quants, unpack_header, LAYOUT)
