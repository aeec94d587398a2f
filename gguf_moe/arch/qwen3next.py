"""qwen3next: Qwen3-Next-80B-A3B and Qwen3-Coder-Next. Three gated delta nets to one gated attention."""

from gguf_moe.arch.base import (
    ATTENTION,
    DELTA_NET,
    GATED_ATTENTION,
    QK_NORM,
    SHARED_EXPERT,
    Arch,
    RopeStyle,
    optional,
    required,
)

ARCH = Arch(
    name="qwen3next",
    rope=RopeStyle.NEOX,
    block_tensors={
        **ATTENTION,
        **GATED_ATTENTION,
        **QK_NORM,
        "post_attention_norm.weight": required("n_embd"),
    },
    recurrent_tensors={
        **DELTA_NET,
        "ssm_in.weight": optional("n_embd", "ssm.n_qkvz"),
        "ssm_ba.weight": required("n_embd", "ssm.n_ba"),
        "post_attention_norm.weight": required("n_embd"),
    },
    gated_attention=True,
    ffn_norm="post_attention_norm",
    moe_tensors={**SHARED_EXPERT, "ffn_gate_inp_shexp.weight": required("n_embd")},
    experts_share_n_ff=True,
)
