"""The angles of rope, with every scaling that files ask for (llama.cpp: ggml_rope_cache_init, rope_yarn)."""

from __future__ import annotations

import math

import numpy as np

from gguf_moe.arch.hparams import HParams, RopeScaling
from gguf_moe.arch.weights import Weights


class RopeTable:
    """Cosines and sines of a model's positions. `n_ctx` decides between longrope's two sets of factors."""

    def __init__(self, hparams: HParams, weights: Weights, n_ctx: int):
        scaling = hparams.rope_scaling
        pairs = np.arange(hparams.n_rot_pairs)
        frequencies = hparams.rope_freq_base ** (-2.0 * pairs / hparams.n_rot)
        frequencies /= _frequency_factors(hparams, weights, n_ctx)
        magnitude = scaling.attn_factor
        interpolated = frequencies / scaling.factor
        if scaling.type == "yarn":
            kept = _yarn_ramp(hparams, scaling)
            interpolated = interpolated * (1.0 - kept) + frequencies * kept
            magnitude *= 1.0 + 0.1 * math.log(scaling.factor)
        self._frequencies = interpolated  # f64 [n_rot / 2]
        self._magnitude = magnitude

    def angles(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of positions first .. first + n - 1, each float32 [n, n_rot / 2]."""
        theta = np.arange(first, first + n)[:, None] * self._frequencies
        cos, sin = np.cos(theta) * self._magnitude, np.sin(theta) * self._magnitude
        return cos.astype(np.float32), sin.astype(np.float32)


def _frequency_factors(hparams: HParams, weights: Weights, n_ctx: int) -> np.ndarray | float:
    """Divisors of the frequencies, f32 [n_rot / 2], or 1."""
    if hparams.rope_scaling.type == "longrope":
        length = "long" if n_ctx > hparams.rope_scaling.n_ctx_orig else "short"
        tensor = weights.get(f"rope_factors_{length}.weight")
    else:
        tensor = weights.get("rope_freqs.weight")
    return 1.0 if tensor is None else tensor.data.view(np.float32).astype(np.float64)


def _yarn_ramp(hparams: HParams, scaling: RopeScaling) -> np.ndarray:
    """How far each frequency is left as it was: 1 for the fast ones, 0 for the slow ones."""

    def dimension(rotations: float) -> float:
        turns = scaling.n_ctx_orig / (rotations * 2.0 * math.pi)
        return hparams.n_rot * math.log(turns) / (2.0 * math.log(hparams.rope_freq_base))

    low = max(0.0, math.floor(dimension(scaling.beta_fast)))
    high = min(hparams.n_rot - 1.0, math.ceil(dimension(scaling.beta_slow)))
    pairs = np.arange(hparams.n_rot_pairs)
    return 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
