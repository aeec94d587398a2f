"""Activations to int8 and back to planes; the layout of a row is in gguf_moe_kernels/activations.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.constants import SMALLEST_AMAX
from gguf_moe_kernels.ref.exact import ONE, quiet

LIMIT = np.float32(127.0)


@dataclass(frozen=True)
class Planes:
    """Rows of quantized activations."""

    q: np.ndarray
    """int32 [rows, n]."""
    d: np.ndarray
    """float32 [rows, blocks]."""
    sums: np.ndarray
    """Q8_1: float32 [rows, blocks]; Q8_K: int32 [rows, n / 16]; Q8_0: empty."""


@quiet
def quantize(activation: ActivationFormat, x: np.ndarray) -> np.ndarray:
    """Rows of float32 [rows, n] -> u8 [rows, row_size], as llama.cpp's quantize_row_q8_0, q8_1 and q8_K.

    A block with a value that is not finite has the scale NaN.
    """
    n_rows, n = x.shape
    block_size = _block_size(activation)
    blocks = x.reshape(n_rows, n // block_size, block_size)
    largest = np.abs(blocks).max(axis=-1)
    largest = largest + (largest - largest)  # infinity becomes NaN
    inverse = np.where(largest >= SMALLEST_AMAX, LIMIT / largest, np.float32(0.0))
    q = _to_int32(np.rint(blocks * inverse[..., None]))
    planes = [q.astype(np.int8).reshape(n_rows, n)]
    if activation is ActivationFormat.Q8_K:
        planes.append(np.where(inverse > 0, ONE / inverse, largest - largest))
        planes.append(q.reshape(n_rows, n // 16, 16).sum(axis=-1).astype(np.int16))
    else:
        planes.append(_through_f16(largest / LIMIT))
    if activation is ActivationFormat.Q8_1:
        planes.append(_through_f16(largest / LIMIT * q.sum(axis=-1).astype(np.float32)))
    rows = np.zeros((n_rows, activation.row_size(n)), np.uint8)
    used = np.concatenate([plane.view(np.uint8) for plane in planes], axis=1)
    rows[:, : used.shape[1]] = used
    return rows


def planes(activation: ActivationFormat, rows: np.ndarray, n: int) -> Planes:
    """The planes of rows of n quantized activations, u8 [rows, row_size]."""

    def plane(start: int, count: int, dtype: type[np.generic]) -> np.ndarray:
        stop = start + count * np.dtype(dtype).itemsize
        return np.ascontiguousarray(rows[:, start:stop]).view(dtype)

    n_blocks = n // _block_size(activation)
    behind_scales = n + 4 * n_blocks
    if activation is ActivationFormat.Q8_K:
        sums = plane(behind_scales, n // 16, np.int16).astype(np.int32)
    else:
        sums = plane(behind_scales, n_blocks if activation is ActivationFormat.Q8_1 else 0, np.float32)
    return Planes(plane(0, n, np.int8).astype(np.int32), plane(n, n_blocks, np.float32), sums)


def _block_size(activation: ActivationFormat) -> int:
    return 256 if activation is ActivationFormat.Q8_K else 32


def _through_f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def _to_int32(x: np.ndarray) -> np.ndarray:
    """Whole numbers as int32; 0 for what is not finite."""
    return np.where(np.isfinite(x), x, np.float32(0.0)).astype(np.int32)
