"""The common form of quantized blocks, and the pieces that their layouts share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks, unpacked. All have the leading axes [rows, blocks]."""

    q: np.ndarray
    """int32 [..., groups, group size]."""
    d: np.ndarray
    """float32 [...]; [..., groups] where each group has a float of its own."""
    scale: np.ndarray
    """int32 [..., groups]."""
    dmin: np.ndarray | None = None
    """float32 [...], where the type has minimums."""
    minimum: np.ndarray | None = None
    """int32 [..., groups]."""


def f16(w: np.ndarray, offset: int) -> np.ndarray:
    return np.ascontiguousarray(w[..., offset : offset + 2]).view(np.float16)[..., 0].astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """u8 [..., n] -> int32 [..., 2 n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int32)


def bits(packed: np.ndarray) -> np.ndarray:
    """u8 [..., 4] -> int32 [..., 32]: the bits, lowest first."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int32)


def crumbs(packed: np.ndarray) -> np.ndarray:
    """u8 [..., 64] -> int32 [..., 8, 32]: of each 32 bytes first bits 0 and 1, then 2 and 3, and so on."""
    halves = packed.reshape(*packed.shape[:-1], 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (halves & 3).reshape(*packed.shape[:-1], 8, 32).astype(np.int32)


def groups_of_16(q: np.ndarray) -> np.ndarray:
    return q.reshape(*q.shape[:2], 16, 16)
