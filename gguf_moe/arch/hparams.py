"""The hyperparameters of a model under llama.cpp's names, read from the file and checked once."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_moe.arch.base import Arch
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
    n_ff: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_rot: int
    f_norm_rms_eps: float
    f_attention_scale: float
    rope_freq_base: float
    rope_scaling: RopeScaling
    n_expert: int
    n_expert_used: int
    n_ff_exp: int
    expert_gating_func: Gating
    expert_weights_norm: bool
    expert_weights_scale: float

    @property
    def n_embd_q(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.n_embd_head_k

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
    n_layer = keys.integer("block_count", minimum=1, maximum=MAX_LAYERS)
    n_embd = keys.integer("embedding_length", minimum=1, maximum=MAX_WIDTH)
    n_head = _same_in_all_layers(keys, "attention.head_count", n_layer, None, maximum=MAX_WIDTH)
    n_head_kv = _same_in_all_layers(keys, "attention.head_count_kv", n_layer, n_head, maximum=n_head)
    if n_head % n_head_kv:
        raise keys.wrong("attention.head_count_kv", f"a divisor of the {n_head} query heads")
    if "attention.key_length" not in keys and n_embd % n_head:
        raise keys.wrong("attention.head_count", f"a divisor of the embedding length {n_embd}")
    n_embd_head_k = keys.integer("attention.key_length", n_embd // n_head, minimum=1, maximum=MAX_WIDTH)
    n_embd_head_v = keys.integer("attention.value_length", n_embd_head_k, minimum=1, maximum=MAX_WIDTH)
    n_rot = keys.integer("rope.dimension_count", n_embd_head_k, minimum=2, maximum=n_embd_head_k)
    if n_rot % 2:
        raise keys.wrong("rope.dimension_count", "an even number")
    n_ff = _same_in_all_layers(keys, "feed_forward_length", n_layer, 0, maximum=MAX_WIDTH)
    n_expert = keys.integer("expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    n_ctx_train = keys.integer("context_length", minimum=1, maximum=MAX_CONTEXT)
    return HParams(
        n_vocab=_n_vocab(metadata),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=n_ff,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_embd_head_k=n_embd_head_k,
        n_embd_head_v=n_embd_head_v,
        n_rot=n_rot,
        f_norm_rms_eps=keys.number("attention.layer_norm_rms_epsilon", positive=True, maximum=1.0),
        f_attention_scale=keys.number("attention.scale", 0.0, minimum=0.0) or n_embd_head_k**-0.5,
        rope_freq_base=keys.number("rope.freq_base", 10000.0, positive=True),
        rope_scaling=_rope_scaling(keys, n_ctx_train),
        n_expert=n_expert,
        n_expert_used=keys.integer("expert_used_count", minimum=1, maximum=n_expert) if n_expert else 0,
        n_ff_exp=keys.integer("expert_feed_forward_length", n_ff, minimum=1, maximum=MAX_WIDTH),
        expert_gating_func=_gating(keys, arch),
        expert_weights_norm=keys.boolean("expert_weights_norm", arch.expert_weights_norm),
        expert_weights_scale=keys.number("expert_weights_scale", 0.0) or 1.0,
    )


def _same_in_all_layers(keys: Metadata, key: str, n_layer: int, default: int | None, maximum: int) -> int:
    if default is not None and key not in keys:
        return default
    layers = set(keys.per_layer(key, n_layer, minimum=1, maximum=maximum))
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
