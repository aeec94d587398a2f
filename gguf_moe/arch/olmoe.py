"""olmoe: OLMoE-1B-7B. The norms of queries and keys run over all heads together."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, Arch, RopeStyle, required

ARCH = Arch(
    name="olmoe",
    rope=RopeStyle.NEOX,
    block_tensors={
        **ATTENTION,
        "attn_q_norm.weight": required("n_embd_q"),
        "attn_k_norm.weight": required("n_embd_k_gqa"),
        **FFN_NORM,
    },
    expert_weights_norm=False,
)
