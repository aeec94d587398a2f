"""minimax-m2: MiniMax-M2, M2.1 and M2.5. Rope turns a part of each head; norms over all heads together."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, Arch, RopeStyle, required
from gguf_moe_kernels.gating import Gating

ARCH = Arch(
    name="minimax-m2",
    rope=RopeStyle.NEOX,
    block_tensors={
        **ATTENTION,
        "attn_q_norm.weight": required("n_embd_q"),
        "attn_k_norm.weight": required("n_embd_k_gqa"),
        **FFN_NORM,
    },
    moe_tensors={"exp_probs_b.bias": required("n_expert")},
    expert_gating_func=Gating.SIGMOID,
)
