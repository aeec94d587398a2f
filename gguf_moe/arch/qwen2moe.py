"""qwen2moe: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B. A shared expert behind a sigmoid gate."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, SHARED_EXPERT, Arch, RopeStyle, required

ARCH = Arch(
    name="qwen2moe",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors={**SHARED_EXPERT, "ffn_gate_inp_shexp.weight": required("n_embd")},
    expert_weights_norm=False,
    experts_share_n_ff=True,
)
