"""The types whose weights come from a codebook, and the ternary ones, in the common form of ref/quants.py.

Layouts: ggml-common.h; what the bits mean: dequantize_row_iq2_xxs and its neighbours in ggml-quants.c. Halves
and eighths there (0.5 + scale, +-0.125) are made whole here: d is so much smaller, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gguf_moe_kernels.codebooks import CODEBOOKS
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref.blocks import Blocks, bits, crumbs, f16, groups_of_16

EIGHTH, QUARTER = np.float32(0.125), np.float32(0.25)


def _integers(w: np.ndarray, dtype: str) -> np.ndarray:
    """Little-endian integers: u8 [..., n] -> int64 [..., n / size]."""
    return np.ascontiguousarray(w).view(dtype).astype(np.int64)


def _fields(packed: np.ndarray, width: int, n: int) -> np.ndarray:
    """The n lowest fields of `width` bits of each integer: [...] -> [..., n]."""
    return packed[..., None] >> np.arange(0, width * n, width) & ((1 << width) - 1)


def _flat(fields: np.ndarray) -> np.ndarray:
    return fields.reshape(*fields.shape[:2], -1)


def _signs(packed: np.ndarray) -> np.ndarray:
    """1 or -1 of 256 weights, from 32 bytes with a bit each."""
    return 1 - 2 * bits(packed)


def _signs_of_7_bits(packed: np.ndarray) -> np.ndarray:
    """The same from 32 integers of 7 bits: an even number of each 8 signs is negative."""
    parity = _fields(packed, 1, 7).sum(axis=-1) & 1
    return _signs((packed | parity << 7).astype(np.uint8))


def _from_codebook(qtype: GGMLType, index: np.ndarray) -> np.ndarray:
    """The weights that so many entries have: int32 [rows, blocks, 256]."""
    return _flat(CODEBOOKS[qtype][index].astype(np.int32))


def _groups_of_32(q: np.ndarray) -> np.ndarray:
    return q.reshape(*q.shape[:2], 8, 32)


def _odd(scale: np.ndarray) -> np.ndarray:
    return (2 * scale + 1).astype(np.int32)


def _iq2_xxs(w: np.ndarray) -> Blocks:
    words = _integers(w[..., 2:], "<u4").reshape(*w.shape[:2], 8, 2)
    index = np.ascontiguousarray(w[..., 2:]).reshape(*w.shape[:2], 8, 8)[..., :4]
    q = _from_codebook(GGMLType.IQ2_XXS, _flat(index))
    q = q * _signs_of_7_bits(_flat(_fields(words[..., 1], 7, 4)))
    return Blocks(_groups_of_32(q), f16(w, 0) * EIGHTH, _odd(words[..., 1] >> 28))


def _iq2_xs(w: np.ndarray) -> Blocks:
    words = _integers(w[..., 2:66], "<u2")
    q = _from_codebook(GGMLType.IQ2_XS, words & 511) * _signs_of_7_bits(words >> 9)
    scale = _flat(_fields(w[..., 66:74].astype(np.int64), 4, 2))
    return Blocks(groups_of_16(q), f16(w, 0) * EIGHTH, _odd(scale))


def _iq2_s(w: np.ndarray) -> Blocks:
    high = _flat(_fields(w[..., 66:74].astype(np.int64), 2, 4))
    q = _from_codebook(GGMLType.IQ2_S, w[..., 2:34] | high << 8) * _signs(w[..., 34:66])
    scale = _flat(_fields(w[..., 74:82].astype(np.int64), 4, 2))
    return Blocks(groups_of_16(q), f16(w, 0) * EIGHTH, _odd(scale))


def _iq3_xxs(w: np.ndarray) -> Blocks:
    words = _integers(w[..., 66:98], "<u4")
    q = _from_codebook(GGMLType.IQ3_XXS, w[..., 2:66]) * _signs_of_7_bits(_flat(_fields(words, 7, 4)))
    return Blocks(_groups_of_32(q), f16(w, 0) * QUARTER, _odd(words >> 28))


def _iq3_s(w: np.ndarray) -> Blocks:
    index = w[..., 2:66].astype(np.int64) | bits(w[..., 66:74]) << 8
    q = _from_codebook(GGMLType.IQ3_S, index) * _signs(w[..., 74:106])
    scale = _flat(_fields(w[..., 106:110].astype(np.int64), 4, 2))
    return Blocks(_groups_of_32(q), f16(w, 0), _odd(scale))


def _iq1_s(w: np.ndarray) -> Blocks:
    words = _integers(w[..., 34:50], "<u2")
    index = w[..., 2:34] | _flat(_fields(words, 3, 4)) << 8
    q = 8 * _groups_of_32(_from_codebook(GGMLType.IQ1_S, index))
    delta = 1 - 2 * (words >> 15)
    return Blocks((q + delta[..., None]).astype(np.int32), f16(w, 0) * EIGHTH, _odd(words >> 12 & 7))


def _iq1_m(w: np.ndarray) -> Blocks:
    nibbles = _flat(_fields(w[..., 32:48].astype(np.int64), 4, 2))
    q = 8 * _from_codebook(GGMLType.IQ1_M, w[..., :32] | (nibbles & 7) << 8)
    delta = np.repeat(1 - 2 * (nibbles >> 3), 8, axis=-1)
    words = _integers(w[..., 48:56], "<u2")
    d = (words >> 12 << np.arange(0, 16, 4)).sum(axis=-1).astype(np.uint16).view(np.float16)
    scale = _odd(_flat(_fields(words, 3, 4)))
    return Blocks(groups_of_16((q + delta).astype(np.int32)), d.astype(np.float32) * EIGHTH, scale)


def _ternary(w: np.ndarray, powers: int) -> np.ndarray:
    """0, 1 or 2: digit n of each byte's fraction of 256 in base 3, for n < powers: [..., powers * bytes]."""
    shifted = w[..., None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:powers, None]
    return _flat(shifted.astype(np.int32) * 3 >> 8)


def _tq1_0(w: np.ndarray) -> Blocks:
    q = np.concatenate([_ternary(w[..., :32], 5), _ternary(w[..., 32:48], 5), _ternary(w[..., 48:52], 4)], -1)
    return Blocks(_groups_of_32(q - 1), f16(w, 52), np.ones((*w.shape[:2], 8), np.int32))


def _tq2_0(w: np.ndarray) -> Blocks:
    return Blocks(crumbs(w[..., :64]) - 1, f16(w, 64), np.ones((*w.shape[:2], 8), np.int32))


UNPACK: dict[GGMLType, Callable[[np.ndarray], Blocks]] = {
    GGMLType.IQ2_XXS: _iq2_xxs,
    GGMLType.IQ2_XS: _iq2_xs,
    GGMLType.IQ2_S: _iq2_s,
    GGMLType.IQ3_XXS: _iq3_xxs,
    GGMLType.IQ3_S: _iq3_s,
    GGMLType.IQ1_S: _iq1_s,
    GGMLType.IQ1_M: _iq1_m,
    GGMLType.TQ1_0: _tq1_0,
    GGMLType.TQ2_0: _tq2_0,
}
"""Type -> what unpacks u8 [rows, blocks, type_size]."""
