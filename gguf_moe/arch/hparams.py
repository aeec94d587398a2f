"""The hyperparameters of a model under llama.cpp's names, read from the file and checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from gguf_moe.arch.base import Arch, Temperature
from gguf_moe.arch.heads import (
    Heads,
    read_heads,
    read_n_layer_kv_from_start,
    same_in_all_layers,
)
from gguf_moe.arch.latent import latent_heads
from gguf_moe.arch.limits import MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH
from gguf_moe.arch.rope_scaling import RopeScaling, read_rope_scaling
from gguf_moe.arch.ssm import Ssm, read_ssm, recurrent_layers
from gguf_moe.arch.windows import layers_with_rope, sliding_window, temperature
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe_kernels.gating import Gating


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
    n_lora_q: int
    """Width of the row that queries are made of; 0 where they are made without one."""
    n_lora_kv: int
    """Width of the row that keys and values are made of (latent attention); 0 where they are made without."""
    is_mla: bool
    """Whether that row is what the KV cache holds, as one head."""
    n_embd_head_k_mla: int
    n_embd_head_v_mla: int
    """Widths of a query's head and of what it finds, which with is_mla are not those of the cache."""
    f_norm_rms_eps: float
    f_attention_scale: float
    attn_temperature: Temperature | None
    """How queries grow with their position."""
    use_kq_norm: bool
    """Whether queries and keys are normed without weights."""
    f_embedding_scale: float
    f_residual_scale: float
    """Of what attention and feed-forward add to the residual stream."""
    f_logit_scale: float
    """The logits are divided by it."""
    f_final_logit_softcapping: float
    """The logits are kept below it by tanh; 0 for no limit."""
    rope_freq_base: float
    rope_freq_base_swa: float
    rope_scaling: RopeScaling
    rope_sections: tuple[int, ...]
    """How many pairs each of the four coordinates of IMROPE turns; empty for other styles."""
    n_swa: int
    """How many positions a layer with a sliding window sees."""
    is_swa: tuple[bool, ...]
    """Whether each layer has a sliding window."""
    has_rope: tuple[bool, ...]
    """Whether each layer turns its queries and keys by their position."""
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

    heads: tuple[Heads, ...] = ()
    """Of each layer, where layers differ. Then the fields above are those of the first that sees all."""
    n_layer_kv_from_start: int = MAX_LAYERS
    """So many layers make keys and values; those behind use the ones of an earlier layer."""

    def of_layer(self, il: int) -> HParams:
        """The same numbers with the heads of layer il."""
        if not self.heads:
            return self
        heads = self.heads[il]
        k, v = heads.n_embd_head_k, heads.n_embd_head_v
        return replace(self, heads=(), **asdict(heads), n_embd_head_k_mla=k, n_embd_head_v_mla=v)

    def kv_layer(self, il: int) -> int:
        """The layer whose keys and values layer il uses: its own, or the last of its kind that makes some."""
        return (
            il
            if il < self.n_layer_kv_from_start
            else self.n_layer_kv_from_start - (2 if self.is_swa[il] else 1)
        )

    @property
    def kv_layers(self) -> list[int]:
        """The layers that have a KV cache."""
        return [il for il in range(self.n_layer) if not self.is_recr[il] and self.kv_layer(il) == il]

    @property
    def n_embd_q(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.n_embd_head_k_mla

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
        return self.n_head * self.n_embd_head_v_mla

    @property
    def n_embd_head_qk_nope(self) -> int:
        """Width of the part of a head that rope leaves, in latent attention."""
        return self.n_embd_head_k_mla - self.n_rot

    @property
    def n_embd_kv_a(self) -> int:
        """Width of the row that keys and values are made of, with the part for rope behind it."""
        return self.n_lora_kv + self.n_rot

    @property
    def n_embd_kv_b(self) -> int:
        """Width of the keys, without their part for rope, and values of all heads."""
        return self.n_head * (self.n_embd_head_qk_nope + self.n_embd_head_v_mla)

    @property
    def n_embd_cache(self) -> int:
        """How many elements the KV cache of a layer has for a position."""
        return self.n_embd_k_gqa + (0 if self.is_mla else self.n_embd_v_gqa)

    @property
    def n_rot_pairs(self) -> int:
        """How many pairs of a head's elements rope turns."""
        return self.n_rot // 2


def read_hparams(metadata: Metadata, arch: Arch) -> HParams:
    """Read and check the keys of the file. Raises GGUFError naming the key, its value and the remedy."""
    keys = metadata.arch
    if width := keys.integer("embedding_length_per_layer_input", 0, minimum=0):
        raise UnsupportedModelError(
            f"{metadata.path}: {keys.prefix}embedding_length_per_layer_input is {width}: embeddings of each "
            "layer, as Gemma-4 E2B and E4B have, are not implemented; use a model without them, as 26B-A4B."
        )
    n_layer_all = keys.integer("block_count", minimum=1, maximum=MAX_LAYERS)
    n_layer = n_layer_all - keys.integer("nextn_predict_layers", 0, minimum=0, maximum=n_layer_all - 1)
    n_ctx_train = keys.integer("context_length", minimum=1, maximum=MAX_CONTEXT)
    n_embd = keys.integer("embedding_length", minimum=1, maximum=MAX_WIDTH)
    n_ff = same_in_all_layers(keys, "feed_forward_length", n_layer_all, 0, maximum=MAX_WIDTH)
    rope_freq_base = _frequency_base(keys, "rope.freq_base", 10000.0)
    rope_scaling = read_rope_scaling(keys, arch, n_ctx_train)
    n_vocab = _n_vocab(metadata)
    windows = sliding_window(keys, arch, n_layer, n_layer_all)
    return HParams(
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=n_ff,
        **_attention(keys, arch, n_embd, n_layer_all, rope_scaling, windows["is_swa"]),
        f_norm_rms_eps=keys.number("attention.layer_norm_rms_epsilon", positive=True, maximum=1.0),
        f_embedding_scale=n_embd**0.5
        if arch.scales_embeddings
        else keys.number("embedding_scale", 0.0) or 1.0,
        f_residual_scale=keys.number("residual_scale", 0.0) or 1.0,
        f_logit_scale=keys.number("logit_scale", 0.0) or 1.0,
        f_final_logit_softcapping=keys.number("final_logit_softcapping", 0.0, minimum=0.0),
        rope_freq_base=rope_freq_base,
        rope_freq_base_swa=_frequency_base(keys, "rope.freq_base_swa", rope_freq_base),
        rope_scaling=rope_scaling,
        **windows,
        n_layer_kv_from_start=read_n_layer_kv_from_start(keys, arch, windows["is_swa"]),
        has_rope=layers_with_rope(arch, n_layer),
        **_experts(keys, arch, n_ff, n_vocab, n_layer_all),
        is_recr=recurrent_layers(keys, n_layer, n_layer_all)
        if arch.recurrent_tensors
        else (False,) * n_layer,
        ssm=read_ssm(keys) if arch.recurrent_tensors else Ssm(),
    )


def _attention(
    keys: Metadata,
    arch: Arch,
    n_embd: int,
    n_layer_all: int,
    scaling: RopeScaling,
    is_swa: tuple[bool, ...],
) -> dict[str, Any]:
    """The fields about attention heads and what they compute."""
    heads = read_heads(keys, arch, n_embd, n_layer_all, is_swa)
    heads |= latent_heads(keys, arch, heads)
    if arch.latent_attention:
        scale = scaling.mscale**2 * heads["n_embd_head_k_mla"] ** -0.5
    else:
        scale = keys.number("attention.scale", 0.0, minimum=0.0) or heads["n_embd_head_k"] ** -0.5
    scale = arch.f_attention_scale or scale
    return heads | {"f_attention_scale": scale, "attn_temperature": temperature(keys, arch)}


def _experts(keys: Metadata, arch: Arch, n_ff: int, n_vocab: int, n_layer_all: int) -> dict[str, Any]:
    """The fields about experts and their router."""
    if arch.dense_tensors:
        n_expert = keys.integer("expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    else:
        n_expert = keys.integer("expert_count", minimum=1, maximum=MAX_EXPERTS)
    n_expert_used = 0
    if n_expert:
        n_expert_used = same_in_all_layers(keys, "expert_used_count", n_layer_all, None, maximum=n_expert)
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
        "n_ff_exp": same_in_all_layers(
            keys, "expert_feed_forward_length", n_layer_all, n_ff_exp, maximum=MAX_WIDTH
        ),
        "use_kq_norm": arch.bare_kq_norm and n_expert != arch.n_expert_without_kq_norm,
        "expert_gating_func": _gating(keys, arch, n_vocab),
        "expert_weights_norm": keys.boolean("expert_weights_norm", arch.expert_weights_norm),
        "expert_weights_scale": keys.number("expert_weights_scale", 0.0) or 1.0,
        "n_expert_groups": n_group,
        "n_group_used": n_group_used,
    }


def _n_vocab(metadata: Metadata) -> int:
    if "tokenizer.ggml.tokens" in metadata:
        n_vocab = len(metadata.strings("tokenizer.ggml.tokens"))
    else:
        n_vocab = metadata.arch.integer("vocab_size", minimum=1)
    if not 0 < n_vocab <= MAX_WIDTH:
        raise GGUFError(f"{metadata.path}: the vocabulary has {n_vocab} tokens; convert the file again.")
    return n_vocab


def _gating(keys: Metadata, arch: Arch, n_vocab: int) -> Gating:
    if "expert_gating_func" not in keys or arch.expert_gating_func is Gating.SIGMOID_WEIGHT:
        return arch.expert_gating_by_vocab.get(n_vocab, arch.expert_gating_func)
    value, known = keys.integer("expert_gating_func"), [int(g) for g in Gating if g > 0]
    if value not in known:
        raise keys.wrong("expert_gating_func", f"one of {', '.join(map(str, known))}")
    return Gating(value)


def _frequency_base(keys: Metadata, key: str, default: float) -> float:
    base = keys.number(key, default, positive=True)
    if base <= 1.0:
        raise keys.wrong(key, "a number greater than 1")
    return base
