"""What the tiny file of each architecture has (tiny_models.py writes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf import GGMLQuantizationType

N_CTX_TRAIN = 512


@dataclass(frozen=True)
class Tiny:
    """What a tiny file has beyond the common sizes and the tensors that its architecture requires."""

    pre: str
    """The name of its pre-tokenizer; "" for a SentencePiece vocabulary, "gemma4" for one of that kind."""
    keys: Mapping[str, int | float | bool | str | list[int] | list[bool]] = field(default_factory=dict)
    """Keys of the architecture, without its name."""
    optional: tuple[str, ...] = ()
    """Which of the tensors that files may leave out it has."""
    without: tuple[str, ...] = ()
    """Tensors that it lacks, by full name: layers differ."""
    fused_qkv: bool = False
    recurrent: tuple[int, ...] = ()
    """The layers that are no attention; the keys say the same."""
    fused_gate_up: bool = False
    """Whether gate and up of the experts are one tensor."""
    n_layer: int = 3
    """Without those at the end that guess further tokens."""
    dense: tuple[int, ...] = ()
    """The blocks that are dense."""
    n_nextn: int = 0
    """So many blocks at the end guess further tokens; they are to be skipped."""
    shared: int = 0
    """The width of the shared expert."""
    late: int = 0
    """From this position on attention is another one; then the logits around it are stored too."""
    output_gain: float = 2.5
    expert_type: GGMLQuantizationType | None = None
    """Of the experts in the quantized file; None: a mix of Q4_0 and Q5_1."""
    has_scales: bool = False
    """Whether each matrix, and each expert, has a scale."""
    arch: str = ""
    """Its architecture, where the file is a second form of one; else its own name says it."""
    form: str = ""
    """What is special about the files of this form, as words before the names of models."""


COMMON = {
    "context_length": N_CTX_TRAIN,
    "embedding_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "feed_forward_length": 96,
    "expert_count": 8,
    "expert_used_count": 3,
}
QKV_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
WIDE_HEADS = {"attention.key_length": 32, "attention.value_length": 32}
SIGMOID = {"expert_gating_func": 2}
DELTA_NET = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 128,
}
LATENT = {
    "attention.kv_lora_rank": 64,
    "rope.dimension_count": 16,
    "leading_dense_block_count": 1,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 2,
}

TINY: dict[str, Tiny] = {
    "llama": Tiny("", {"expert_used_count": 2}, ("output.weight", "rope_freqs.weight")),
    "qwen2moe": Tiny(
        "qwen2",
        {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64},
        ("output.weight", *QKV_BIAS),
        shared=64,
    ),
    "qwen3moe": Tiny("qwen2", {"expert_feed_forward_length": 32, **WIDE_HEADS}),
    "qwen3moe-nvfp4": Tiny(
        "qwen2",
        {"expert_feed_forward_length": 64, **WIDE_HEADS},
        ("output.weight",),
        expert_type=GGMLQuantizationType.NVFP4,
        has_scales=True,
        arch="qwen3moe",
        form="files in NVFP4, with scales of",
    ),
    "llama4": Tiny(
        "llama4",
        {
            "expert_feed_forward_length": 32,
            "expert_used_count": 2,
            "interleave_moe_layer_step": 2,
            **WIDE_HEADS,
        },
        ("output.weight", "rope_freqs.weight"),
        dense=(0, 2, 4),
        n_layer=5,
        late=8192,
        shared=32,
    ),
    "olmoe": Tiny("olmo", {"attention.head_count_kv": 4}, ("output.weight",)),
    "phimoe": Tiny(
        "",
        {
            "expert_used_count": 2,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": 1.19,
        },
        (*QKV_BIAS, "rope_factors_long.weight", "rope_factors_short.weight"),
    ),
    "granitemoe": Tiny(
        "refact",
        {
            "embedding_scale": 0.5,
            "residual_scale": 0.75,
            "attention.scale": 0.2,
            "logit_scale": 4.0,
            "expert_shared_feed_forward_length": 64,
        },
        ("attn_output.bias", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
        shared=64,
        output_gain=10.0,
    ),
    "deepseek": Tiny(
        "deepseek-llm",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.7,
            "leading_dense_block_count": 1,
            "rope.scaling.type": "none",
        },
        ("output.weight",),
        dense=(0,),
        shared=64,
    ),
    "deepseek2": Tiny(
        "deepseek-v3",
        keys={
            **LATENT,
            "attention.q_lora_rank": 32,
            "attention.head_count_kv": 1,
            "attention.key_length": 80,
            "attention.value_length": 64,
            "attention.key_length_mla": 48,
            "attention.value_length_mla": 32,
            "attention.temperature_scale": 0.25,
            "attention.temperature_length": 20,
            "expert_count": 16,
            "expert_used_count": 4,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            **SIGMOID,
            **YARN,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        optional=("output.weight", "exp_probs_b.bias"),
        dense=(0,),
        n_nextn=1,
        shared=64,
    ),
    "deepseek2-old": Tiny(
        "deepseek-llm",
        arch="deepseek2",
        form="files of before April 2025, without compressed queries, of",
        keys={
            **LATENT,
            "attention.q_lora_rank": 0,
            "attention.head_count_kv": 4,
            "attention.key_length": 48,
            "attention.value_length": 32,
            **YARN,
        },
        optional=("output.weight",),
        dense=(0,),
        shared=64,
    ),
    "dots1": Tiny(
        "qwen2",
        {
            "attention.head_count_kv": 4,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "leading_dense_block_count": 1,
            **SIGMOID,
            **WIDE_HEADS,
        },
        ("output.weight", "exp_probs_b.bias"),
        dense=(0,),
        shared=64,
    ),
    "bailingmoe": Tiny(
        "bailingmoe",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "rope.dimension_count": 16,
        },
        ("output.weight",),
        shared=64,
    ),
    "bailingmoe2": Tiny(
        "bailingmoe2",
        {
            "expert_count": 16,
            "expert_used_count": 4,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "leading_dense_block_count": 1,
            "rope.dimension_count": 8,
            **SIGMOID,
        },
        ("output.weight", "exp_probs_b.bias"),
        fused_qkv=True,
        dense=(0,),
        n_nextn=1,
        shared=32,
    ),
    "ernie4_5-moe": Tiny(
        "",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 64,
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
        },
        ("exp_probs_b.bias", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
        dense=(0,),
        shared=64,
    ),
    "hunyuan-moe": Tiny(
        "hunyuan",
        {"expert_feed_forward_length": 96, "expert_shared_feed_forward_length": 64, **WIDE_HEADS},
        shared=64,
    ),
    "minimax-m2": Tiny(
        "minimax-m2",
        {"expert_feed_forward_length": 96, "rope.dimension_count": 16, **SIGMOID, **WIDE_HEADS},
        ("output.weight",),
    ),
    "glm4moe": Tiny(
        "glm4",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "leading_dense_block_count": 1,
            "rope.dimension_count": 16,
            **WIDE_HEADS,
        },
        (*QKV_BIAS, "attn_q_norm.weight", "attn_k_norm.weight"),
        dense=(0,),
        n_nextn=1,
        shared=32,
    ),
    "gpt-oss": Tiny(
        "gpt-4o",
        {
            "expert_feed_forward_length": 32,
            "attention.sliding_window": 24,
            **YARN,
            **WIDE_HEADS,
        },
        ("output.weight", *QKV_BIAS),
        expert_type=GGMLQuantizationType.MXFP4,
    ),
    "mellum": Tiny(
        "mellum2",
        {
            "expert_feed_forward_length": 32,
            "attention.sliding_window": 24,
            "attention.sliding_window_pattern": [True, False, True],
            **YARN,
            **WIDE_HEADS,
        },
        ("output.weight",),
    ),
    "qwen3next": Tiny(
        "qwen2",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 64,
            "full_attention_interval": 2,
            "rope.dimension_count": 8,
            **DELTA_NET,
            **WIDE_HEADS,
        },
        ("output.weight",),
        recurrent=(0, 2),
        n_nextn=1,
        shared=64,
    ),
    "qwen35moe": Tiny(
        "qwen35",
        {
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 64,
            "attention.recurrent_layers": [True, False, True, False],
            "rope.dimension_count": 16,
            "rope.dimension_sections": [3, 2, 2, 1],
            **DELTA_NET,
            **WIDE_HEADS,
        },
        recurrent=(0, 2),
        n_nextn=1,
        shared=64,
    ),
    "gemma4": Tiny(
        "gemma4",
        {
            "attention.head_count_kv": [2, 1, 2],
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.key_length_swa": 16,
            "attention.value_length_swa": 16,
            "attention.sliding_window": 24,
            "attention.sliding_window_pattern": [True, False, True],
            "attention.shared_kv_layers": 1,
            "embedding_length_per_layer_input": 0,
            "expert_feed_forward_length": 32,
            "final_logit_softcapping": 8.0,
            "rope.dimension_count": 32,
            "rope.dimension_count_swa": 16,
            "rope.freq_base": 20000.0,
            "rope.freq_base_swa": 500.0,
        },
        ("output.weight", "attn_v.weight", "layer_output_scale.weight", "ffn_down_exps.scale"),
        without=(
            "blk.1.attn_v.weight",
            *(f"blk.2.attn_{name}.weight" for name in ("k", "v", "k_norm")),
        ),
        fused_gate_up=True,
    ),
}


def arch_of(name: str) -> str:
    """The architecture of a tiny file."""
    return TINY[name].arch or name
