"""The hyperparameters of a model under llama.cpp's names, read from the file and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_moe.arch.base import Arch, RopeStyle
from gguf_moe.arch.ssm import Ssm, read_ssm, recurrent_layers
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError
from gguf_moe_kernels.gating import Gating

MAX_LAYERS, MAX_EXPERTS = 512, 1024
"""llama.cpp's limits (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS)."""
MAX_CONTEXT = 1 << 30
MAX_WIDTH = 1 << 24


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How positions beyond the trained context are squeezed in. `type` is none, linear, yarn or longrope."""

    type: str
    factor: float
    n_ctx_orig: int
    attn_factor: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True, slots=True)
class HParams:
    """Sizes and constants of a model. Fields named in an architecture's shapes are read from here."""

    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    """Layers that make a token; NextN layers, which guess the tokens after it, are left out."""
    n_ff: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_rot: int
    f_norm_rms_eps: float
    f_attention_scale: float
    f_embedding_scale: float
    f_residual_scale: float
    """Of what attention and feed-forward add to the residual stream."""
    f_logit_scale: float
    """The logits are divided by it."""
    rope_freq_base: float
    rope_freq_base_swa: float
    rope_scaling: RopeScaling
    rope_sections: tuple[int, ...]
    """How many pairs each of the four coordinates of IMROPE turns; empty for other styles."""
    n_swa: int
    """How many positions a layer with a sliding window sees."""
    is_swa: tuple[bool, ...]
    """Whether each layer has a sliding window."""
    n_expert: int
    n_expert_used: int
    n_ff_exp: int
    expert_gating_func: Gating
    expert_weights_norm: bool
    expert_weights_scale: float
    n_expert_groups: int
    """Groups of which only the best n_group_used give experts; 1 is no groups."""
    n_group_used: int
    is_recr: tuple[bool, ...]
    """Whether each layer is recurrent, and has neither attention nor a KV cache."""
    ssm: Ssm

    @property
    def n_layer_kv(self) -> int:
        """Layers that have a KV cache."""
        return self.is_recr.count(False)

    @property
    def n_embd_q(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.n_embd_head_k

    @property
    def n_embd_q_gate(self) -> int:
        """Width of all query heads with their gates."""
        return 2 * self.n_embd_q

    @property
    def n_embd_k_gqa(self) -> int:
        """Width of all key heads."""
        return self.n_head_kv * self.n_embd_head_k

    @property
    def n_embd_v_gqa(self) -> int:
        """Width of all value heads."""
        return self.n_head_kv * self.n_embd_head_v

    @property
    def n_embd_out(self) -> int:
        """Width of the attention's output, before it is projected back to n_embd."""
        return self.n_head * self.n_embd_head_v

    @property
    def n_rot_pairs(self) -> int:
        """How many pairs of a head's elements rope turns."""
        return self.n_rot // 2


def read_hparams(metadata: Metadata, arch: Arch) -> HParams:
    """Read and check the keys of the file. Raises GGUFError naming the key, its value and the remedy."""
    keys = metadata.arch
    n_layer_all = keys.integer("block_count", minimum=1, maximum=MAX_LAYERS)
    n_layer = n_layer_all - keys.integer("nextn_predict_layers", 0, minimum=0, maximum=n_layer_all - 1)
    n_ctx_train = keys.integer("context_length", minimum=1, maximum=MAX_CONTEXT)
    n_embd = keys.integer("embedding_length", minimum=1, maximum=MAX_WIDTH)
    n_ff = _same_in_all_layers(keys, "feed_forward_length", n_layer_all, 0, maximum=MAX_WIDTH)
    rope_freq_base = _frequency_base(keys, "rope.freq_base", 10000.0)
    return HParams(
        n_vocab=_n_vocab(metadata),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=n_ff,
        **_heads(keys, arch, n_embd, n_layer_all),
        f_norm_rms_eps=keys.number("attention.layer_norm_rms_epsilon", positive=True, maximum=1.0),
        f_embedding_scale=keys.number("embedding_scale", 0.0) or 1.0,
        f_residual_scale=keys.number("residual_scale", 0.0) or 1.0,
        f_logit_scale=keys.number("logit_scale", 0.0) or 1.0,
        rope_freq_base=rope_freq_base,
        rope_freq_base_swa=_frequency_base(keys, "rope.freq_base_swa", rope_freq_base),
        rope_scaling=_rope_scaling(keys, n_ctx_train),
        **_sliding_window(keys, arch, n_layer, n_layer_all),
        **_experts(keys, arch, n_ff, n_layer_all),
        is_recr=recurrent_layers(keys, n_layer, n_layer_all)
        if arch.recurrent_tensors
        else (False,) * n_layer,
        ssm=read_ssm(keys) if arch.recurrent_tensors else Ssm(),
    )


def _heads(keys: Metadata, arch: Arch, n_embd: int, n_layer_all: int) -> dict[str, Any]:
    """The fields about attention heads."""
    n_head = _same_in_all_layers(keys, "attention.head_count", n_layer_all, None, maximum=MAX_WIDTH)
    n_head_kv = _same_in_all_layers(keys, "attention.head_count_kv", n_layer_all, n_head, maximum=n_head)
    if n_head % n_head_kv:
        raise keys.wrong("attention.head_count_kv", f"a divisor of the {n_head} query heads")
    if "attention.key_length" not in keys and n_embd % n_head:
        raise keys.wrong("attention.head_count", f"a divisor of the embedding length {n_embd}")
    n_embd_head_k = keys.integer("attention.key_length", n_embd // n_head, minimum=1, maximum=MAX_WIDTH)
    n_rot = keys.integer("rope.dimension_count", n_embd_head_k, minimum=2, maximum=n_embd_head_k)
    if n_rot % 2:
        known = (key for key in ("rope.dimension_count", "attention.key_length") if key in keys)
        key = next(known, "attention.head_count")
        raise keys.wrong(key, f"a number that makes rope turn an even number of elements, not {n_rot}")
    n_embd_head_v = keys.integer("attention.value_length", n_embd_head_k, minimum=1, maximum=MAX_WIDTH)
    if arch.gated_attention and n_embd_head_v != n_embd_head_k:
        key = "attention.value_length" if "attention.value_length" in keys else "attention.key_length"
        raise keys.wrong(key, "the same for keys and values in this architecture")
    return {
        "n_head": n_head,
        "n_head_kv": n_head_kv,
        "n_embd_head_k": n_embd_head_k,
        "n_embd_head_v": n_embd_head_v,
        "n_rot": n_rot,
        "rope_sections": _rope_sections(keys, n_rot) if arch.rope is RopeStyle.IMROPE else (),
        "f_attention_scale": keys.number("attention.scale", 0.0, minimum=0.0) or n_embd_head_k**-0.5,
    }


def _sliding_window(keys: Metadata, arch: Arch, n_layer: int, n_layer_all: int) -> dict[str, Any]:
    """The fields about sliding windows. A pattern is an array of bools, or n: each n-th layer sees all."""
    n_swa = keys.integer("attention.sliding_window", 0, minimum=0, maximum=MAX_CONTEXT)
    if not n_swa or not arch.n_swa_pattern:
        return {"n_swa": 0, "is_swa": (False,) * n_layer}
    key = "attention.sliding_window_pattern"
    if key in keys and isinstance(keys[key], np.ndarray):
        layers = keys.per_layer(key, n_layer_all, minimum=0, maximum=1)[:n_layer]
        return {"n_swa": n_swa, "is_swa": tuple(bool(layer) for layer in layers)}
    n = keys.integer(key, arch.n_swa_pattern, minimum=0)
    return {"n_swa": n_swa, "is_swa": tuple(not n or il % n < n - 1 for il in range(n_layer))}


def _experts(keys: Metadata, arch: Arch, n_ff: int, n_layer_all: int) -> dict[str, Any]:
    """The fields about experts and their router."""
    if arch.dense_tensors:
        n_expert = keys.integer("expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    else:
        n_expert = keys.integer("expert_count", minimum=1, maximum=MAX_EXPERTS)
    n_expert_used = 0
    if n_expert:
        n_expert_used = _same_in_all_layers(keys, "expert_used_count", n_layer_all, None, maximum=n_expert)
    n_ff_exp = n_ff // n_expert_used if n_expert and arch.experts_share_n_ff else n_ff
    n_group = keys.integer("expert_group_count", 1, minimum=0, maximum=MAX_EXPERTS) or 1
    n_group_used = n_group
    if n_group > 1:
        if n_expert % n_group or n_expert < 2 * n_group:
            raise keys.wrong(
                "expert_group_count", f"a divisor of the {n_expert} experts, with 2 or more each"
            )
        least = -(-n_expert_used // (n_expert // n_group))
        n_group_used = keys.integer("expert_group_used_count", minimum=least, maximum=n_group)
    return {
        "n_expert": n_expert,
        "n_expert_used": n_expert_used,
        "n_ff_exp": _same_in_all_layers(
            keys, "expert_feed_forward_length", n_layer_all, n_ff_exp, maximum=MAX_WIDTH
        ),
        "expert_gating_func": _gating(keys, arch),
        "expert_weights_norm": keys.boolean("expert_weights_norm", arch.expert_weights_norm),
        "expert_weights_scale": keys.number("expert_weights_scale", 0.0) or 1.0,
        "n_expert_groups": n_group,
        "n_group_used": n_group_used,
    }


def _same_in_all_layers(keys: Metadata, key: str, n_layer_all: int, default: int | None, maximum: int) -> int:
    if default is not None and key not in keys:
        return default
    layers = set(keys.per_layer(key, n_layer_all, minimum=1, maximum=maximum))
    if len(layers) > 1:
        raise keys.wrong(key, "the same for all layers of this architecture")
    return layers.pop()


def _n_vocab(metadata: Metadata) -> int:
    if "tokenizer.ggml.tokens" in metadata:
        n_vocab = len(metadata.strings("tokenizer.ggml.tokens"))
    else:
        n_vocab = metadata.arch.integer("vocab_size", minimum=1)
    if not 0 < n_vocab <= MAX_WIDTH:
        raise GGUFError(f"{metadata.path}: the vocabulary has {n_vocab} tokens; convert the file again.")
    return n_vocab


def _gating(keys: Metadata, arch: Arch) -> Gating:
    value = keys.integer("expert_gating_func", arch.expert_gating_func)
    try:
        return Gating(value)
    except ValueError:
        raise keys.wrong("expert_gating_func", f"one of {', '.join(str(int(g)) for g in Gating)}") from None


def _frequency_base(keys: Metadata, key: str, default: float) -> float:
    base = keys.number(key, default, positive=True)
    if base <= 1.0:
        raise keys.wrong(key, "a number greater than 1")
    return base


def _rope_sections(keys: Metadata, n_rot: int) -> tuple[int, ...]:
    sections = keys.integers("rope.dimension_sections")
    if sections.shape != (4,) or sections.min() < 0 or not 0 < sections.sum(dtype=np.float64) <= n_rot:
        raise keys.wrong("rope.dimension_sections", f"an array of four numbers, together from 1 to {n_rot}")
    return tuple(int(n) for n in sections)


def _rope_scaling(keys: Metadata, n_ctx_train: int) -> RopeScaling:
    kind = keys.string("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.wrong("rope.scaling.type", "none, linear, yarn or longrope")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0), minimum=0.0)
    return RopeScaling(
        type=kind,
        factor=(factor or 1.0) if kind != "none" else 1.0,
        n_ctx_orig=keys.integer("rope.scaling.original_context_length", n_ctx_train, minimum=1),
        attn_factor=keys.number("rope.scaling.attn_factor", 1.0, positive=True),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0, positive=True),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0, positive=True),
    )
