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
    """float32 or int32 [rows, blocks]; Q8_K: int32 [rows, n / 16]."""


@quiet
def quantize(activation: ActivationFormat, x: np.ndarray) -> np.ndarray:
    """Rows of float32 [rows, n] -> u8 [rows, row_size], as llama.cpp's quantize_row_q8_0, q8_1 and q8_K.

    A block with a value that is not finite has the scale NaN.
    """
    n_rows, n = x.shape
    block_size = activation.block_size
    blocks = x.reshape(n_rows, n // block_size, block_size)
    largest = np.abs(blocks).max(axis=-1)
    largest = largest + (largest - largest)  # infinity becomes NaN
    inverse = np.where(largest >= SMALLEST_AMAX, LIMIT / largest, np.float32(0.0))
    q = _to_int32(np.rint(blocks * inverse[..., None]))
    if activation is ActivationFormat.Q8_K:
        d = np.where(inverse > 0, ONE / inverse, largest - largest)
        sums = q.reshape(n_rows, n // block_size, 8, 2, 16).sum(axis=-1).astype(np.int16)
    else:
        d = _through_f16(largest / LIMIT)
        sums = q.sum(axis=-1, dtype=np.int32)
    if activation is ActivationFormat.Q8_1:
        sums = _through_f16(largest / LIMIT * sums.astype(np.float32))
    planes = [_whole_fours(plane) for plane in (q.astype(np.int8), d, sums)]
    if activation is ActivationFormat.Q8_K:
        planes[2] = planes[2].swapaxes(2, 3)
    rows = np.zeros((n_rows, activation.row_size(n)), np.uint8)
    used = np.concatenate([_bytes(p) for p in planes], axis=1)
    rows[:, : used.shape[1]] = used
    return rows


def q8_0_blocks(x: np.ndarray) -> np.ndarray:
    """Rows of float32 [rows, n] as blocks of Q8_0, like those of a file: u8 [rows, 34 * n / 32]."""
    n_rows, n = x.shape
    found = planes(ActivationFormat.Q8_0, quantize(ActivationFormat.Q8_0, x), n)
    with np.errstate(over="ignore"):
        d = found.d.astype(np.float16)[..., None].view(np.uint8)
    q = found.q.astype(np.int8).view(np.uint8).reshape(n_rows, n // 32, 32)
    return np.concatenate([d, q], axis=2).reshape(n_rows, -1)


def planes(activation: ActivationFormat, rows: np.ndarray, n: int) -> Planes:
    """The planes of rows of n quantized activations, u8 [rows, row_size]."""
    n_rows, n_blocks = len(rows), n // activation.block_size
    fours = -(-n_blocks // 4)
    q_size, d_size = 4 * fours * activation.block_size, 16 * fours

    def plane(start: int, size: int, dtype: type[np.generic]) -> np.ndarray:
        return np.ascontiguousarray(rows[:, start : start + size]).view(dtype)

    q, d = plane(0, n, np.int8).astype(np.int32), plane(q_size, 4 * n_blocks, np.float32)
    if activation is ActivationFormat.Q8_K:
        by_four = plane(q_size + d_size, 128 * fours, np.int16).reshape(n_rows, fours, 8, 4, 2)
        by_block = by_four.swapaxes(2, 3).reshape(n_rows, 4 * fours, 16)
        return Planes(q, d, by_block[:, :n_blocks].reshape(n_rows, 16 * n_blocks).astype(np.int32))
    kind = np.float32 if activation is ActivationFormat.Q8_1 else np.int32
    return Planes(q, d, plane(q_size + d_size, 4 * n_blocks, kind))


def _whole_fours(plane: np.ndarray) -> np.ndarray:
    """[rows, blocks, ...] -> [rows, fours, 4, ...], padded with zeros."""
    n_rows, n_blocks, *rest = plane.shape
    padding = [(0, 0), (0, -n_blocks % 4), *[(0, 0)] * len(rest)]
    return np.pad(plane, padding).reshape(n_rows, -(-n_blocks // 4), 4, *rest)


def _bytes(plane: np.ndarray) -> np.ndarray:
    """The bytes of each row: u8 [rows, bytes]."""
    return np.ascontiguousarray(plane).reshape(len(plane), int(np.prod(plane.shape[1:]))).view(np.uint8)


def _through_f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def _to_int32(x: np.ndarray) -> np.ndarray:
    """Whole numbers as int32; 0 for what is not finite."""
    return np.where(np.isfinite(x), x, np.float32(0.0)).astype(np.int32)
