"""Which positions and what of them each layer sees: sliding windows, rope, and queries that grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from gguf_moe.arch.base import Arch, Temperature
from gguf_moe.arch.limits import MAX_CONTEXT
from gguf_moe.checkpoint.metadata import Metadata


def sliding_window(keys: Metadata, arch: Arch, n_layer: int, n_layer_all: int) -> dict[str, Any]:
    """Fields of HParams. A pattern is an array of bools, or n: each n-th layer sees all. Raises GGUFError."""
    n_swa = arch.n_attn_chunk
    if n_swa:
        keys.integer("attention.sliding_window", n_swa, minimum=1)
    else:
        n_swa = keys.integer("attention.sliding_window", 0, minimum=0, maximum=MAX_CONTEXT)
    if not n_swa or not arch.n_swa_pattern:
        return {"n_swa": 0, "is_swa": (False,) * n_layer}
    key = "attention.sliding_window_pattern"
    if key in keys and isinstance(keys[key], np.ndarray):
        layers = keys.per_layer(key, n_layer_all, minimum=0, maximum=1)[:n_layer]
        return {"n_swa": n_swa, "is_swa": tuple(bool(layer) for layer in layers)}
    n = keys.integer(key, arch.n_swa_pattern, minimum=0)
    return {"n_swa": n_swa, "is_swa": tuple(not n or il % n < n - 1 for il in range(n_layer))}


def layers_with_rope(arch: Arch, n_layer: int) -> tuple[bool, ...]:
    """Whether each layer has rope."""
    step = arch.n_no_rope_layer_step
    return tuple(not step or (il + 1) % step != 0 for il in range(n_layer))


def temperature(keys: Metadata, arch: Arch) -> Temperature | None:
    """How queries grow: as the architecture has it, or in latent attention the file. Raises GGUFError."""
    if not arch.latent_attention:
        return arch.attn_temperature
    scale = keys.number("attention.temperature_scale", 0.0)
    if not scale:
        return None
    return Temperature(scale, keys.integer("attention.temperature_length", minimum=1, maximum=MAX_CONTEXT))
