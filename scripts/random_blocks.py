"""Valid quantized blocks of random weights: those of whole models as fast as memory can be copied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES

N_BLOCKS = 65537
"""Blocks that are really drawn for a type and size of weights. A prime, so that no two rows, and no two
experts, of a tensor that repeats them are the same."""
MXFP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class RandomBlocks:
    """Makes blocks of types that `TYPES` lists. The weights have a mean of 0 and the size that is asked for.

    A tensor's bytes are a view into an array that repeats the blocks which were drawn.
    """

    def __init__(self, seed: int):
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self._repeated: dict[tuple[Type, float], np.ndarray] = {}

    def tensor(self, qtype: Type, n_weights: int, rms: float) -> np.ndarray:
        """Bytes of a tensor whose weights have the root mean square `rms`: uint8 [n]. Do not write to it."""
        block_size, type_size = GGML_QUANT_SIZES[qtype]
        n = n_weights // block_size
        drawn = self._repeated.get((qtype, rms))
        if drawn is None:
            drawn = TYPES[qtype](self._rng, rms)
        if len(drawn) < n + N_BLOCKS:
            drawn = np.resize(drawn[:N_BLOCKS], (n + N_BLOCKS, type_size))
        self._repeated[qtype, rms] = drawn
        first = int(self._rng.integers(N_BLOCKS))
        return drawn[first : first + n].reshape(-1)


def _draw(rng: np.random.Generator, type_size: int) -> np.ndarray:
    return rng.integers(0, 256, (N_BLOCKS, type_size), np.uint8)


def _put_halves(blocks: np.ndarray, offset: int, values: np.ndarray) -> None:
    blocks[:, offset : offset + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _size(*integers: int) -> float:
    """The root mean square of integers that are equally likely."""
    return float(np.sqrt(np.mean(np.square(integers))))


def _scales(rng: np.random.Generator, rms: float) -> np.ndarray:
    """Block scales of the size `rms`, of six bits: small multiples of them are exact in half precision."""
    scales = rng.uniform(0.6, 1.4, N_BLOCKS)
    mantissa, exponent = np.frexp(scales * (rms / np.sqrt(np.mean(np.square(scales)))))
    return np.ldexp(np.round(mantissa * 64) / 64, exponent)


def _k_quants(rng: np.random.Generator, rms: float, qtype: Type, bits: int) -> np.ndarray:
    """Q4_K or Q5_K. The minimum of a group takes its middle away: w = d * s * (q - (2**bits - 1) / 2)."""
    blocks = _draw(rng, GGML_QUANT_SIZES[qtype][1])
    middle = (2**bits - 1) / 2
    d = _scales(rng, rms / _size(*range(32, 64)) / _size(*(np.arange(2**bits) - middle)))
    _put_halves(blocks, 0, d)
    _put_halves(blocks, 2, middle * d)
    # Bytes 4-7: scales 0-3 and the upper bits of 4-7. Bytes 8-11: the same of the minima. All are >= 32.
    blocks[:, 4:8] |= 0b1010_0000
    blocks[:, 8:12] = blocks[:, 4:8]
    # Bytes 12-15: the lower bits of scales 4-7 and of their minima.
    blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    return blocks


def _q4_k(rng: np.random.Generator, rms: float) -> np.ndarray:
    return _k_quants(rng, rms, Type.Q4_K, 4)


def _q5_k(rng: np.random.Generator, rms: float) -> np.ndarray:
    return _k_quants(rng, rms, Type.Q5_K, 5)


def _q6_k(rng: np.random.Generator, rms: float) -> np.ndarray:
    """The scales are signed, which makes the mean 0."""
    blocks = _draw(rng, GGML_QUANT_SIZES[Type.Q6_K][1])
    scales = rng.integers(64, 128, (N_BLOCKS, 16)) * rng.choice((-1, 1), (N_BLOCKS, 16))
    blocks[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    _put_halves(blocks, 208, _scales(rng, rms / _size(*range(64, 128)) / _size(*range(-32, 32))))
    return blocks


def _q8_0(rng: np.random.Generator, rms: float) -> np.ndarray:
    blocks = _draw(rng, GGML_QUANT_SIZES[Type.Q8_0][1])
    blocks[blocks == 128] = 0  # -128 has no counterpart
    _put_halves(blocks, 0, _scales(rng, rms / _size(*range(-127, 128))))
    return blocks


def _mxfp4(rng: np.random.Generator, rms: float) -> np.ndarray:
    """Scales are powers of two: a mix of two neighbours has the size that is asked for."""
    blocks = _draw(rng, GGML_QUANT_SIZES[Type.MXFP4][1])
    scale = rms / float(np.sqrt(np.mean(np.square(MXFP4_VALUES))))
    exponent = int(np.floor(np.log2(scale)))
    share_of_larger = (scale**2 / 4.0**exponent - 1) / 3
    blocks[:, 0] = 127 + exponent + (rng.random(N_BLOCKS) < share_of_larger)
    return blocks


TYPES: dict[Type, Callable[[np.random.Generator, float], np.ndarray]] = {
    Type.Q4_K: _q4_k,
    Type.Q5_K: _q5_k,
    Type.Q6_K: _q6_k,
    Type.Q8_0: _q8_0,
    Type.MXFP4: _mxfp4,
}


HALVES: dict[Type, tuple[int, ...]] = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.Q4_1: (0, 2),
    Type.Q5_1: (0, 2),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
}
"""Where a block's float16 stand, if not one at its beginning."""


def any_blocks(rng: np.random.Generator, qtype: Type, n: int) -> np.ndarray:
    """n blocks of any type, uint8 [n, type_size]: random bits, and small scales, so that weights are finite.

    Weights of float types are drawn from a normal distribution.
    """
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    if block_size == 1:
        weights = rng.standard_normal((n, 1), np.float32)
        halves = weights.view(np.uint16)[:, 1:]
        stored = {Type.F32: weights, Type.F16: weights.astype(np.float16), Type.BF16: halves}[qtype]
        return np.ascontiguousarray(stored).view(np.uint8)
    blocks = rng.integers(0, 256, (n, type_size), np.uint8)
    if qtype is Type.MXFP4:
        blocks[:, 0] = rng.integers(118, 124, n)
    elif qtype is Type.NVFP4:
        blocks[:, :4] &= 0x3F
    else:
        _put_small_scales(rng, qtype, blocks)
    return blocks


def any_rows(rng: np.random.Generator, qtype: Type, n_rows: int, width: int) -> np.ndarray:
    """Rows of `width` weights of any type, uint8 [n_rows, row size]: the same `any_blocks` over and over."""
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    n = n_rows * width // block_size
    return np.resize(any_blocks(rng, qtype, min(N_BLOCKS, n)), (n, type_size)).reshape(n_rows, -1)


def _put_small_scales(rng: np.random.Generator, qtype: Type, blocks: np.ndarray) -> None:
    for offset in HALVES.get(qtype, (0,)):
        scales = rng.uniform(1e-4, 1e-3, (len(blocks), 1)).astype("<f2")
        if qtype is Type.IQ1_M:  # four bits in each of its last four u16
            words = blocks[:, 48:].view("<u2")
            words[:] = words & 0xFFF | scales.view("<u2") >> np.arange(0, 16, 4, dtype=np.uint16) << 12
        else:
            _put_halves(blocks, offset, scales)
