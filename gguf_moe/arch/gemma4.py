"""gemma4: Gemma-4-26B-A4B. Two sizes of heads; a dense feed-forward beside the experts; norms around all."""

from gguf_moe.arch.base import (
    ATTENTION,
    DENSE,
    FFN_NORM,
    OUTER,
    QK_NORM,
    Arch,
    GatedUnit,
    RopeStyle,
    optional,
    required,
)

ARCH = Arch(
    name="gemma4",
    rope=RopeStyle.NEOX,
    tensors={**OUTER, "rope_freqs.weight": required("n_rot_pairs")},
    block_tensors={
        **ATTENTION,
        **QK_NORM,
        **FFN_NORM,
        **DENSE,
        "attn_v.weight": optional("n_embd", "n_embd_v_gqa"),
        "post_attention_norm.weight": required("n_embd"),
        "post_ffw_norm.weight": required("n_embd"),
        "layer_output_scale.weight": optional("1"),
    },
    moe_tensors={
        "ffn_gate_inp.scale": required("n_embd"),
        "ffn_down_exps.scale": optional("n_expert"),
        "pre_ffw_norm_2.weight": required("n_embd"),
        "post_ffw_norm_1.weight": required("n_embd"),
        "post_ffw_norm_2.weight": required("n_embd"),
    },
    dense_tensors=DENSE,
    attn_post_norm="post_attention_norm",
    ffn_post_norm="post_ffw_norm",
    gated_unit=GatedUnit.GEGLU,
    norms_values=True,
    heads_differ=True,
    dense_beside_experts=True,
    scales_embeddings=True,
    f_attention_scale=1.0,
    n_swa_pattern=6,
    swa_rope_scaling=False,
)
