"""How rope is scaled to contexts that are longer than those of the training, as the file says it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gguf_moe.arch.base import Arch
from gguf_moe.checkpoint.metadata import Metadata


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions beyond the trained context are squeezed in. `type` is none, linear, yarn or longrope."""

    type: str
    factor: float
    n_ctx_orig: int
    attn_factor: float
    beta_fast: float
    beta_slow: float
    mscale_all_dim: float
    """With yarn, attention's scale grows with the factor by so much; 0: rope's magnitude grows instead."""

    @property
    def magnitude(self) -> float:
        """What rope's cosines and sines are multiplied by."""
        grows = self.type == "yarn" and not self.mscale_all_dim
        return self.attn_factor * (self._growth(1.0) if grows else 1.0)

    @property
    def mscale(self) -> float:
        """What queries, and keys too, are multiplied by in latent attention."""
        return self.magnitude * self._growth(self.mscale_all_dim)

    def _growth(self, mscale: float) -> float:
        return 1.0 + 0.1 * mscale * math.log(max(1.0, self.factor))


def read_rope_scaling(keys: Metadata, arch: Arch, n_ctx_train: int) -> RopeScaling:
    """How an architecture's file scales rope. Raises GGUFError."""
    kind = keys.string("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.wrong("rope.scaling.type", "none, linear, yarn or longrope")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0), minimum=0.0)
    mscale = 0.0
    if arch.latent_attention:
        # What converters write is a tenth of the model's own number.
        mscale = keys.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    return RopeScaling(
        type=kind,
        factor=(factor or 1.0) if kind != "none" else 1.0,
        n_ctx_orig=keys.integer("rope.scaling.original_context_length", n_ctx_train, minimum=1),
        attn_factor=keys.number("rope.scaling.attn_factor", 1.0, positive=True),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0, positive=True),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0, positive=True),
        mscale_all_dim=mscale,
    )
