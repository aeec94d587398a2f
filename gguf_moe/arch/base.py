"""What an architecture is: data. The decoder (graph/) reads it; nothing here computes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf_moe_kernels.gating import Gating


class RopeStyle(enum.Enum):
    """Which elements of a head rope turns together."""

    NORM = "norm"
    """Neighbours: 2i and 2i + 1."""
    NEOX = "neox"
    """Halves: i and i + n_rot / 2."""
    IMROPE = "imrope"
    """Halves, each pair by one of four coordinates (llama.cpp: interleaved M-RoPE). Of text three of them are
    the position, and the fourth is 0."""


class GatedUnit(enum.Enum):
    """How gate and up of a feed-forward become one (llama.cpp: llm_ffn_op_type)."""

    SWIGLU = "swiglu"
    """silu(gate) * up."""
    SWIGLU_OAI = "swiglu_oai"
    """The clamped form of gpt-oss."""
    GEGLU = "geglu"
    """gelu(gate) * up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor's shape in GGUF order (fastest first), as names of HParams fields ("ssm.d_conv") or digits."""

    dimensions: tuple[str, ...]
    required: bool = True


def required(*dimensions: str) -> Shape:
    """A tensor that every file of the architecture has."""
    return Shape(dimensions)


def optional(*dimensions: str) -> Shape:
    """A tensor that files may leave out."""
    return Shape(dimensions, required=False)


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries are multiplied by log(floor((position + offset) / length) + 1) * scale + 1."""

    scale: float
    length: int
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Arch:
    """One general.architecture. The defaults are the plain pre-norm decoder that most files hold."""

    name: str
    """The value of general.architecture; the file that defines it has this name, with "_" for "-"."""
    rope: RopeStyle
    block_tensors: Mapping[str, Shape]
    """Tensors of each block, by name without "blk.N."; experts and their router are found by role.

    The norms of queries and keys, attn_q_norm and attn_k_norm, are as long as a head, or as all heads.
    """
    block_forms: Mapping[str, tuple[Mapping[str, Shape], Mapping[str, Shape]]] = field(default_factory=dict)
    """More tensors of each block, by a field of HParams: those where it is not 0, and those where it is."""
    moe_tensors: Mapping[str, Shape] = field(default_factory=dict)
    """More tensors of a block that has a router: biases, and the shared expert."""
    dense_tensors: Mapping[str, Shape] = field(default_factory=dict)
    """Feed-forward tensors of a block that has no router."""
    recurrent_tensors: Mapping[str, Shape] = field(default_factory=dict)
    """In the place of block_tensors in a block that is a gated delta net; empty: no block is."""
    neighbours_share_keys: bool = True
    """Whether heads of a delta net that have the same keys are neighbours, and not n_group apart."""
    gated_attention: bool = False
    """Whether attn_q makes for each head its query and behind it a gate for its output."""
    tensors: Mapping[str, Shape] = field(default_factory=lambda: OUTER)
    """Tensors outside the blocks, by full name."""
    ffn_norm: str = "ffn_norm"
    """The name of the norm before the feed-forward."""
    attn_post_norm: str = ""
    """The name of a norm of what attention adds to the residual stream; "" for none."""
    ffn_post_norm: str = ""
    """The same of the feed-forward."""
    norms_after_rope: bool = False
    """Whether queries and keys are normed after rope and not before."""
    norms_values: bool = False
    """Whether value heads are normed, without weights. A file without attn_v has its keys for values."""
    heads_differ: bool = False
    """Whether heads may have another size where a window slides, and each layer its own n_head_kv."""
    dense_beside_experts: bool = False
    """Whether a block with experts also has a dense feed-forward, each with norms of its own (gemma4)."""
    scales_embeddings: bool = False
    """Whether token embeddings are multiplied by the root of n_embd."""
    f_attention_scale: float | None = None
    """The scale of attention scores, whatever the file says; None: the file's, or by the heads' size."""
    gated_unit: GatedUnit = GatedUnit.SWIGLU
    expert_gating_func: Gating = Gating.SOFTMAX
    """What the router's logits go through where the file doesn't say."""
    expert_gating_by_vocab: Mapping[int, Gating] = field(default_factory=dict)
    """The same for files with a vocabulary of this size."""
    expert_weights_norm: bool = True
    """Whether the chosen experts' weights are made to sum to 1 where the file doesn't say."""
    experts_share_n_ff: bool = False
    """Where the file has no expert_feed_forward_length: the chosen experts have n_ff together, not each."""
    latent_attention: bool = False
    """Whether keys and values are made of a short row (MLA)."""
    weight_before_ffn: bool = False
    """Whether an expert's input is multiplied by its weight, and not its output."""
    n_no_rope_layer_step: int = 0
    """Each n-th layer has no rope; 0: all have it."""
    attn_temperature: Temperature | None = None
    """How queries grow where there is no rope."""
    bare_kq_norm: bool = False
    """Whether queries and keys are normed without weights after rope."""
    n_expert_without_kq_norm: int = 0
    """Models with so many experts don't have that norm."""
    n_attn_chunk: int = 0
    """Instead of a sliding window: a token sees its own stretch of so many positions."""
    n_swa_pattern: int = 0
    """Where the file has a sliding window but no pattern: every n-th layer sees all positions.

    0: the architecture has no sliding window, whatever the file says.
    """
    swa_rope_scaling: bool = True
    """Whether rope is scaled to long contexts in layers with a sliding window too."""


OUTER: Mapping[str, Shape] = {
    "token_embd.weight": required("n_embd", "n_vocab"),
    "output_norm.weight": required("n_embd"),
    "output.weight": optional("n_embd", "n_vocab"),
}
"""What stands around the blocks. Without an output matrix the token embeddings are used (tied)."""

ATTENTION: Mapping[str, Shape] = {
    "attn_norm.weight": required("n_embd"),
    "attn_q.weight": required("n_embd", "n_embd_q"),
    "attn_q.bias": optional("n_embd_q"),
    "attn_k.weight": required("n_embd", "n_embd_k_gqa"),
    "attn_k.bias": optional("n_embd_k_gqa"),
    "attn_v.weight": required("n_embd", "n_embd_v_gqa"),
    "attn_v.bias": optional("n_embd_v_gqa"),
    "attn_output.weight": required("n_embd_out", "n_embd"),
    "attn_output.bias": optional("n_embd"),
}
"""Attention; a file may also hold queries, keys and values in one tensor, attn_qkv."""

QK_NORM: Mapping[str, Shape] = {
    "attn_q_norm.weight": required("n_embd_head_k"),
    "attn_k_norm.weight": required("n_embd_head_k"),
}
"""A norm of each query and key head."""

GATED_ATTENTION: Mapping[str, Shape] = {
    "attn_q.weight": required("n_embd", "n_embd_q_gate"),
    "attn_q.bias": optional("n_embd_q_gate"),
}
"""The part of ATTENTION that is wider where queries come with gates."""

DELTA_NET: Mapping[str, Shape] = {
    "attn_norm.weight": required("n_embd"),
    "attn_qkv.weight": required("n_embd", "ssm.n_qkv"),
    "attn_gate.weight": required("n_embd", "ssm.d_inner"),
    "ssm_conv1d.weight": required("ssm.d_conv", "ssm.n_qkv"),
    "ssm_dt.bias": required("ssm.dt_rank"),
    "ssm_a": required("ssm.dt_rank"),
    "ssm_norm.weight": required("ssm.d_state"),
    "ssm_out.weight": required("ssm.d_inner", "n_embd"),
}
"""A gated delta net; a file may also hold attn_qkv and attn_gate in one tensor, ssm_in."""

FFN_NORM: Mapping[str, Shape] = {"ffn_norm.weight": required("n_embd")}

DENSE: Mapping[str, Shape] = {
    "ffn_gate.weight": required("n_embd", "n_ff"),
    "ffn_gate.bias": optional("n_ff"),
    "ffn_up.weight": required("n_embd", "n_ff"),
    "ffn_up.bias": optional("n_ff"),
    "ffn_down.weight": required("n_ff", "n_embd"),
    "ffn_down.bias": optional("n_embd"),
}
"""A dense feed-forward."""

SHARED_EXPERT: Mapping[str, Shape] = {
    "ffn_gate_shexp.weight": required("n_embd", "n_ff_shexp"),
    "ffn_up_shexp.weight": required("n_embd", "n_ff_shexp"),
    "ffn_down_shexp.weight": required("n_ff_shexp", "n_embd"),
}
"""An expert for every token. Its width n_ff_shexp is that of the tensors: files disagree about the key."""

OPTIONAL_SHARED_EXPERT: Mapping[str, Shape] = {
    name: Shape(shape.dimensions, required=False) for name, shape in SHARED_EXPERT.items()
}

SELECTION_BIAS: Mapping[str, Shape] = {"exp_probs_b.bias": optional("n_expert")}
"""Added to the router's probabilities for the choice of experts, not for their weights."""

ROPE_FACTORS: Mapping[str, Shape] = {
    "rope_freqs.weight": optional("n_rot_pairs"),
    "rope_factors_long.weight": optional("n_rot_pairs"),
    "rope_factors_short.weight": optional("n_rot_pairs"),
}
"""Divisors of rope's frequencies; the long ones are for contexts beyond the original length."""
