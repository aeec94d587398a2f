"""What a step gets for the positions of its tokens: the angles of rope, and the temperature of attention."""

from __future__ import annotations

import numpy as np

from gguf_moe.arch.base import Arch, Temperature
from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.rope import rope_tables
from gguf_moe.arch.weights import Weights


class Positions:
    """The inputs of a model's graph that follow from positions, for a context of n_ctx."""

    def __init__(self, arch: Arch, hparams: HParams, weights: Weights, n_ctx: int):
        self._hparams = hparams
        self._tables = rope_tables(arch, hparams, weights, n_ctx)

    def inputs(self, first: int, n: int) -> dict[str, np.ndarray]:
        """Of positions first .. first + n - 1, by the names of buffers, each float32 with n rows."""
        found = {}
        for name, table in self._tables.items():
            found[f"{name}_cos"], found[f"{name}_sin"] = table.angles(first, n)
        if temperature := self._hparams.attn_temperature:
            found["inp_attn_scale"] = _growth(temperature, np.arange(first, first + n))
        return found


def _growth(temperature: Temperature, positions: np.ndarray) -> np.ndarray:
    """Factors of the queries, f32 [n, 1]: 1 at first, and more after each stretch of positions."""
    stretches = np.floor((positions + temperature.offset) / temperature.length)
    factors = np.log(stretches + 1.0) * temperature.scale + 1.0
    return factors.astype(np.float32)[:, None]
