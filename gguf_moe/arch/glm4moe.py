"""glm4moe: GLM-4.5, GLM-4.5-Air, GLM-4.6 and GLM-4.7. Rope turns a part of each head; a shared expert."""

from gguf_moe.arch.base import ATTENTION, DENSE, SHARED_EXPERT, Arch, RopeStyle, optional, required
from gguf_moe_kernels.gating import Gating

ARCH = Arch(
    name="glm4moe",
    rope=RopeStyle.NEOX,
    block_tensors={
        **ATTENTION,
        "attn_q_norm.weight": optional("n_embd_head_k"),
        "attn_k_norm.weight": optional("n_embd_head_k"),
        "post_attention_norm.weight": required("n_embd"),
    },
    ffn_norm="post_attention_norm",
    moe_tensors={"exp_probs_b.bias": required("n_expert"), **SHARED_EXPERT},
    dense_tensors=DENSE,
    expert_gating_func=Gating.SIGMOID,
    expert_weights_norm=False,
    experts_share_n_ff=True,
)
