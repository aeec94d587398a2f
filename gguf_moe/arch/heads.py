"""What a file says about attention heads, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gguf_moe.arch.base import Arch, RopeStyle
from gguf_moe.arch.limits import MAX_WIDTH
from gguf_moe.checkpoint.metadata import Metadata


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one layer, by the names of HParams' fields."""

    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_rot: int


def read_heads(
    keys: Metadata, arch: Arch, n_embd: int, n_layer_all: int, is_swa: tuple[bool, ...]
) -> dict[str, Any]:
    """The fields about attention heads."""
    n_head = same_in_all_layers(keys, "attention.head_count", n_layer_all, None, maximum=MAX_WIDTH)
    key = "attention.head_count_kv"
    if arch.heads_differ:
        n_head_kv = keys.per_layer(key, n_layer_all, (n_head,) * n_layer_all, minimum=1, maximum=n_head)
    else:
        n_head_kv = (same_in_all_layers(keys, key, n_layer_all, n_head, maximum=n_head),) * n_layer_all
    if any(n_head % n for n in n_head_kv):
        raise keys.wrong(key, f"a divisor of the {n_head} query heads")
    if "attention.key_length" not in keys and n_embd % n_head:
        raise keys.wrong("attention.head_count", f"a divisor of the embedding length {n_embd}")
    sizes = _head_sizes(keys, "", (n_embd // n_head,) * 3)
    layers = [Heads(n, *sizes) for n in n_head_kv]
    if arch.heads_differ:
        small = _head_sizes(keys, "_swa", sizes)
        layers = [Heads(n, *(small if swa else sizes)) for n, swa in zip(n_head_kv, is_swa, strict=False)]
    first = layers[is_swa.index(False) if False in is_swa else 0]
    if arch.gated_attention and first.n_embd_head_v != first.n_embd_head_k:
        key = "attention.value_length" if "attention.value_length" in keys else "attention.key_length"
        raise keys.wrong(key, "the same for keys and values in this architecture")
    return {
        "n_head": n_head,
        **asdict(first),
        "rope_sections": _rope_sections(keys, first.n_rot) if arch.rope is RopeStyle.IMROPE else (),
        "heads": tuple(layers) if len(set(layers)) > 1 else (),
    }


def _head_sizes(keys: Metadata, suffix: str, defaults: tuple[int, int, int]) -> tuple[int, int, int]:
    """n_embd_head_k, n_embd_head_v and n_rot of the layers that a key's suffix stands for."""
    key_length, n_rot_key = f"attention.key_length{suffix}", f"rope.dimension_count{suffix}"
    n_embd_head_k = keys.integer(key_length, defaults[0], minimum=1, maximum=MAX_WIDTH)
    n_rot = keys.integer(n_rot_key, n_embd_head_k, minimum=2, maximum=n_embd_head_k)
    if n_rot % 2:
        known = (key for key in (n_rot_key, key_length) if key in keys)
        key = next(known, "attention.head_count")
        raise keys.wrong(key, f"a number that makes rope turn an even number of elements, not {n_rot}")
    value_length = defaults[1] if suffix else n_embd_head_k
    n_embd_head_v = keys.integer(
        f"attention.value_length{suffix}", value_length, minimum=1, maximum=MAX_WIDTH
    )
    return n_embd_head_k, n_embd_head_v, n_rot


def _rope_sections(keys: Metadata, n_rot: int) -> tuple[int, ...]:
    sections = keys.integers("rope.dimension_sections")
    if sections.shape != (4,) or sections.min() < 0 or not 0 < sections.sum(dtype=np.float64) <= n_rot:
        raise keys.wrong("rope.dimension_sections", f"an array of four numbers, together from 1 to {n_rot}")
    return tuple(int(n) for n in sections)


def read_n_layer_kv_from_start(keys: Metadata, arch: Arch, is_swa: tuple[bool, ...]) -> int:
    """How many layers make keys and values of their own."""
    key, n_layer = "attention.shared_kv_layers", len(is_swa)
    if not arch.heads_differ or not keys.integer(key, 0, minimum=0):
        return n_layer
    n_layer_kv_from_start = n_layer - keys.integer(key, maximum=n_layer - 2) if n_layer > 2 else 0
    if (
        n_layer_kv_from_start < 2
        or not is_swa[n_layer_kv_from_start - 2]
        or is_swa[n_layer_kv_from_start - 1]
    ):
        raise keys.wrong(
            key, "so many that a layer with a sliding window and one without are left before them"
        )
    return n_layer_kv_from_start


def same_in_all_layers(keys: Metadata, key: str, n_layer_all: int, default: int | None, maximum: int) -> int:
    if default is not None and key not in keys:
        return default
    layers = set(keys.per_layer(key, n_layer_all, minimum=1, maximum=maximum))
    if len(layers) > 1:
        raise keys.wrong(key, "the same for all layers of this architecture")
    return layers.pop()
