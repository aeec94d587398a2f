"""The angles of rope, with every scaling that files ask for (llama.cpp: ggml_rope_cache_init, rope_yarn)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.rope_scaling import RopeScaling
from gguf_moe.arch.weights import Weights

BLOCK = 128
"""Positions whose angles are computed at once: tokens one by one then find theirs ready."""
N_BLOCKS = 32
"""So many blocks are kept, as conversations take turns."""


class RopeTable:
    """Cosines and sines of the positions, for one frequency base and one kind of scaling."""

    def __init__(self, n_rot: int, freq_base: float, scaling: RopeScaling, factors: np.ndarray | None = None):
        """`factors` divide the frequencies: f32 [n_rot / 2]."""
        frequencies = freq_base ** (-2.0 * np.arange(n_rot // 2) / n_rot)
        if factors is not None:
            frequencies /= factors.astype(np.float64)
        interpolated = frequencies / scaling.factor
        if scaling.type == "yarn":
            kept = _yarn_ramp(n_rot, freq_base, scaling)
            interpolated = interpolated * (1.0 - kept) + frequencies * kept
        self._frequencies = interpolated  # f64 [n_rot / 2]
        self._magnitude = scaling.magnitude
        self._block = lru_cache(N_BLOCKS)(lambda block: self._compute(block * BLOCK, BLOCK))

    def angles(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of positions first .. first + n - 1, each float32 [n, n_rot / 2]. Not to be changed."""
        block, start = divmod(first, BLOCK)
        if start + n > BLOCK:
            return self._compute(first, n)
        cos, sin = self._block(block)
        return cos[start : start + n], sin[start : start + n]

    def _compute(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = np.arange(first, first + n)[:, None] * self._frequencies
        cos, sin = np.cos(theta) * self._magnitude, np.sin(theta) * self._magnitude
        return cos.astype(np.float32), sin.astype(np.float32)


def rope_tables(arch: Arch, hparams: HParams, weights: Weights, n_ctx: int) -> dict[str, RopeTable]:
    """The tables of a model, by the names of the decoder's inputs: "rope", and "rope_swa" for window layers.

    `n_ctx` decides between the two sets of factors of longrope.
    """
    factors, scaling = _frequency_factors(hparams, weights, n_ctx), hparams.rope_scaling
    if hparams.rope_sections:
        factors = _section_factors(hparams.rope_sections, hparams.n_rot_pairs)
    tables = {}
    kinds = {is_swa for is_swa, has in zip(hparams.is_swa, hparams.has_rope, strict=True) if has}
    if False in kinds:
        n_rot = hparams.of_layer(hparams.is_swa.index(False)).n_rot
        tables["rope"] = RopeTable(n_rot, hparams.rope_freq_base, scaling, factors)
    if True in kinds:
        if not arch.swa_rope_scaling:
            factors, scaling = None, replace(scaling, type="none", factor=1.0, attn_factor=1.0)
        n_rot = hparams.of_layer(hparams.is_swa.index(True)).n_rot
        tables["rope_swa"] = RopeTable(n_rot, hparams.rope_freq_base_swa, scaling, factors)
    return tables


def _frequency_factors(hparams: HParams, weights: Weights, n_ctx: int) -> np.ndarray | None:
    """Divisors of the frequencies, f32 [n_rot / 2], if the file has some."""
    length = "long" if n_ctx > hparams.rope_scaling.n_ctx_orig else "short"
    tensor = weights.get("rope_freqs.weight") or weights.get(f"rope_factors_{length}.weight")
    return None if tensor is None else tensor.data.view(np.float32)


def _section_factors(sections: Sequence[int], n_pairs: int) -> np.ndarray:
    """Divisors of the frequencies, f32 [n_pairs]: infinite for pairs of the fourth coordinate, 0 in text.

    The others take turns as long as their sections last, again after all of them (ggml_mrope_cache_init).
    """
    place = np.arange(n_pairs) % sum(sections)
    has_position = place < 3 * np.array(sections)[place % 3]
    return np.where(has_position, np.float32(1.0), np.float32(np.inf))


def _yarn_ramp(n_rot: int, freq_base: float, scaling: RopeScaling) -> np.ndarray:
    """How far each frequency is left as it was: 1 for the fast ones, 0 for the slow ones."""

    def dimension(rotations: float) -> float:
        turns = scaling.n_ctx_orig / (rotations * 2.0 * math.pi)
        return n_rot * math.log(turns) / (2.0 * math.log(freq_base))

    low = max(0.0, math.floor(dimension(scaling.beta_fast)))
    high = min(n_rot - 1.0, math.ceil(dimension(scaling.beta_slow)))
    pairs = np.arange(n_rot // 2)
    return 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
