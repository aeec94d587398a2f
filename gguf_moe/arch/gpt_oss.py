"""gpt-oss: gpt-oss-20b and gpt-oss-120b. Attention sinks, a sliding window in every other block, biases."""

from gguf_moe.arch.base import ATTENTION, Arch, GatedUnit, RopeStyle, required
from gguf_moe_kernels.gating import Gating

ARCH = Arch(
    name="gpt-oss",
    rope=RopeStyle.NEOX,
    block_tensors={
        **ATTENTION,
        "attn_output.bias": required("n_embd"),
        "attn_sinks.weight": required("n_head"),
        "post_attention_norm.weight": required("n_embd"),
    },
    ffn_norm="post_attention_norm",
    moe_tensors={
        "ffn_gate_inp.bias": required("n_expert"),
        "ffn_gate_exps.bias": required("n_ff_exp", "n_expert"),
        "ffn_up_exps.bias": required("n_ff_exp", "n_expert"),
        "ffn_down_exps.bias": required("n_embd", "n_expert"),
    },
    gated_unit=GatedUnit.SWIGLU_OAI,
    expert_gating_func=Gating.SOFTMAX_WEIGHT,
    expert_weights_norm=False,
    n_swa_pattern=2,
)
