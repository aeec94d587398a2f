"""The quantized types in one common form (layouts: ggml-common.h), and from it back to float32.

Every type is whole numbers with a scale for each group of them:

    weight = d * scale[group] * q - dmin * minimum[group]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import codebook_types
from gguf_moe_kernels.ref.blocks import Blocks, bits, crumbs, f16, groups_of_16, nibbles
from gguf_moe_kernels.ref.exact import quiet

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32
)  # kvalues_iq4nl
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int32)  # kvalues_mxfp4
FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@quiet
def dequantize(qtype: GGMLType, rows: np.ndarray) -> np.ndarray:
    """Rows of any of the types that have kernels: u8 [n_rows, row_size] -> float32 [n_rows, n]."""
    if qtype in FLOAT_TYPES:
        return _floats(qtype, rows)
    b = unpack(qtype, rows)
    d = b.d if b.d.ndim == b.scale.ndim else b.d[..., None]
    weights = (d * b.scale.astype(np.float32))[..., None] * b.q.astype(np.float32)
    if b.dmin is not None and b.minimum is not None:
        weights = weights - (b.dmin[..., None] * b.minimum.astype(np.float32))[..., None]
    return weights.reshape(len(rows), -1)


def unpack(qtype: GGMLType, rows: np.ndarray) -> Blocks:
    """Rows of a quantized type, u8 [n_rows, row_size], in the common form."""
    return _UNPACK[qtype](rows.reshape(len(rows), -1, qtype.type_size))


def _floats(qtype: GGMLType, rows: np.ndarray) -> np.ndarray:
    if qtype is GGMLType.F32:
        return np.ascontiguousarray(rows).view(np.float32)
    halves = np.ascontiguousarray(rows).view(np.uint16)
    if qtype is GGMLType.F16:
        return halves.view(np.float16).astype(np.float32)
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _one_group(q: np.ndarray, d: np.ndarray, m: np.ndarray | None = None) -> Blocks:
    """A type of 32 weights with one scale, and perhaps an m that is added (so it is a negative minimum)."""
    ones = np.ones((*d.shape, 1), np.int32)
    return Blocks(q[..., None, :], d, ones) if m is None else Blocks(q[..., None, :], d, ones, -m, ones)


def _q4_0(w: np.ndarray) -> Blocks:
    return _one_group(nibbles(w[..., 2:]) - 8, f16(w, 0))


def _q4_1(w: np.ndarray) -> Blocks:
    return _one_group(nibbles(w[..., 4:]), f16(w, 0), f16(w, 2))


def _q5_0(w: np.ndarray) -> Blocks:
    return _one_group((nibbles(w[..., 6:]) | bits(w[..., 2:6]) << 4) - 16, f16(w, 0))


def _q5_1(w: np.ndarray) -> Blocks:
    return _one_group(nibbles(w[..., 8:]) | bits(w[..., 4:8]) << 4, f16(w, 0), f16(w, 2))


def _q8_0(w: np.ndarray) -> Blocks:
    return _one_group(w[..., 2:].astype(np.int8).astype(np.int32), f16(w, 0))


def _iq4_nl(w: np.ndarray) -> Blocks:
    return _one_group(IQ4_VALUES[nibbles(w[..., 2:])], f16(w, 0))


def _mxfp4(w: np.ndarray) -> Blocks:
    d = np.ldexp(np.float32(1.0), w[..., 0].astype(np.int32) - 128)
    return _one_group(MXFP4_VALUES[nibbles(w[..., 1:])], d)


def _q2_k(w: np.ndarray) -> Blocks:
    scales = w[..., :16].astype(np.int32)
    return Blocks(groups_of_16(crumbs(w[..., 16:80])), f16(w, 80), scales & 15, f16(w, 82), scales >> 4)


def _q3_k(w: np.ndarray) -> Blocks:
    third = w[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = (crumbs(w[..., 32:96]) | third.astype(np.int32) << 2) - 4
    low = nibbles(w[..., 96:104])
    high = w[..., None, 104:108] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scale = (low | high.reshape(low.shape).astype(np.int32) << 4) - 32
    return Blocks(groups_of_16(q), f16(w, 108), scale)


def _scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 6-bit scales and minimums of eight groups from 12 bytes (get_scale_min_k4 in ggml-quants.c)."""
    first, second, third = np.split(packed.astype(np.int32), 3, axis=-1)
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minimum = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return scale, minimum


def _pairs_of_groups(packed: np.ndarray) -> np.ndarray:
    """u8 [..., 128] -> int32 [..., 8, 32]: each 32 bytes hold a group in the low, one in the high nibbles."""
    return nibbles(packed.reshape(*packed.shape[:-1], 4, 32)).reshape(*packed.shape[:-1], 8, 32)


def _q4_k(w: np.ndarray) -> Blocks:
    scale, minimum = _scales_and_minimums(w[..., 4:16])
    return Blocks(_pairs_of_groups(w[..., 16:]), f16(w, 0), scale, f16(w, 2), minimum)


def _q5_k(w: np.ndarray) -> Blocks:
    scale, minimum = _scales_and_minimums(w[..., 4:16])
    fifth = w[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _pairs_of_groups(w[..., 48:]) | fifth.astype(np.int32) << 4
    return Blocks(q, f16(w, 0), scale, f16(w, 2), minimum)


def _q6_k(w: np.ndarray) -> Blocks:
    halves = w[..., :128].reshape(*w.shape[:-1], 2, 64)
    low = nibbles(halves).reshape(*w.shape[:-1], 8, 32)
    q = (low | crumbs(w[..., 128:192]) << 4) - 32
    return Blocks(groups_of_16(q), f16(w, 208), w[..., 192:208].astype(np.int8).astype(np.int32))


def _iq4_xs(w: np.ndarray) -> Blocks:
    low = np.stack([w[..., 4:8] & 15, w[..., 4:8] >> 4], axis=-1).reshape(*w.shape[:-1], 8).astype(np.int32)
    high = w[..., 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    scale = (low | high.reshape(low.shape).astype(np.int32) << 4) - 32
    q = IQ4_VALUES[nibbles(w[..., 8:].reshape(*w.shape[:-1], 8, 16))]
    return Blocks(q, f16(w, 0), scale)


def _nvfp4(w: np.ndarray) -> Blocks:
    """A block of 64 is two of 32 here, as the activations have them, of two groups each."""
    x = w[..., :4].astype(np.int32)
    exponent, mantissa = x >> 3 & 15, x & 7
    significand = (mantissa + np.where(exponent == 0, 0, 8)).astype(np.float32)
    d = np.ldexp(significand, np.maximum(exponent, 1) - 11)
    d = np.where(x == 0x7F, np.float32(0.0), d)
    q = MXFP4_VALUES[nibbles(w[..., 4:].reshape(*w.shape[:2], 4, 8))]
    scale = np.ones((len(w), 2 * w.shape[1], 2), np.int32)
    return Blocks(q.reshape(*scale.shape, 16), d.reshape(scale.shape), scale)


_UNPACK: dict[GGMLType, Callable[[np.ndarray], Blocks]] = {
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.MXFP4: _mxfp4,
    GGMLType.NVFP4: _nvfp4,
    **codebook_types.UNPACK,
}
