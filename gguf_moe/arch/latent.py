"""The hyperparameters of latent attention (MLA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_moe.arch.base import Arch
from gguf_moe.arch.limits import MAX_WIDTH
from gguf_moe.checkpoint.metadata import Metadata


def latent_heads(keys: Metadata, arch: Arch, heads: Mapping[str, int]) -> dict[str, Any]:
    """Fields of HParams; `heads` are those about the heads in the KV cache. Raises GGUFError."""
    if not arch.latent_attention:
        widths = {"n_embd_head_k_mla": heads["n_embd_head_k"], "n_embd_head_v_mla": heads["n_embd_head_v"]}
        return {"n_lora_q": 0, "n_lora_kv": 0, "is_mla": False, **widths}
    least = heads["n_rot"] + 1
    n_lora_kv = keys.integer("attention.kv_lora_rank", minimum=1, maximum=MAX_WIDTH)
    is_mla = "attention.key_length_mla" in keys
    if is_mla:
        widths = {
            "n_embd_head_k_mla": keys.integer("attention.key_length_mla", minimum=least, maximum=MAX_WIDTH),
            "n_embd_head_v_mla": keys.integer("attention.value_length_mla", minimum=1, maximum=MAX_WIDTH),
        }
        _check_is(keys, "attention.head_count_kv", 1)
        _check_is(keys, "attention.key_length", n_lora_kv + heads["n_rot"])
        _check_is(keys, "attention.value_length", n_lora_kv)
    else:
        n_k = keys.integer("attention.key_length", minimum=least, maximum=MAX_WIDTH)
        widths = {"n_embd_head_k_mla": n_k, "n_embd_head_v_mla": heads["n_embd_head_v"]}
        _check_is(keys, "attention.head_count_kv", heads["n_head"])
    n_lora_q = keys.integer("attention.q_lora_rank", 0, minimum=0, maximum=MAX_WIDTH)
    return {"n_lora_q": n_lora_q, "n_lora_kv": n_lora_kv, "is_mla": is_mla, **widths}


def _check_is(keys: Metadata, key: str, value: int) -> None:
    """Raise GGUFError if the key does not have the only value that fits the others."""
    if keys.integer(key, minimum=1) != value:
        raise keys.wrong(key, f"{value}, which follows from the other keys about attention")
