"""qwen35moe: Qwen3.5 and Qwen3.6 with experts, as 35B-A3B. The parts of qwen3next in other forms."""

from gguf_moe.arch.base import (
    ATTENTION,
    DELTA_NET,
    GATED_ATTENTION,
    QK_NORM,
    SHARED_EXPERT,
    Arch,
    RopeStyle,
    required,
)

ARCH = Arch(
    name="qwen35moe",
    rope=RopeStyle.IMROPE,
    block_tensors={
        **ATTENTION,
        **GATED_ATTENTION,
        **QK_NORM,
        "post_attention_norm.weight": required("n_embd"),
    },
    recurrent_tensors={
        **DELTA_NET,
        "ssm_alpha.weight": required("n_embd", "ssm.dt_rank"),
        "ssm_beta.weight": required("n_embd", "ssm.dt_rank"),
        "post_attention_norm.weight": required("n_embd"),
    },
    neighbours_share_keys=False,
    gated_attention=True,
    ffn_norm="post_attention_norm",
    moe_tensors={**SHARED_EXPERT, "ffn_gate_inp_shexp.weight": required("n_embd")},
    experts_share_n_ff=True,
)
