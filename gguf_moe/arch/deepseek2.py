"""deepseek2: DeepSeek-V2, V3 and R1, Kimi-K2 and GLM-4.7-Flash. Latent attention, in two forms of files."""

from gguf_moe.arch.base import (
    DENSE,
    FFN_NORM,
    SELECTION_BIAS,
    SHARED_EXPERT,
    Arch,
    RopeStyle,
    required,
)
from gguf_moe_kernels.gating import Gating

LOW_RANK_QUERIES = {
    "attn_q_a.weight": required("n_embd", "n_lora_q"),
    "attn_q_a_norm.weight": required("n_lora_q"),
    "attn_q_b.weight": required("n_lora_q", "n_embd_q"),
}
HEADS_APART = {
    "attn_k_b.weight": required("n_embd_head_qk_nope", "n_lora_kv", "n_head"),
    "attn_v_b.weight": required("n_lora_kv", "n_embd_head_v_mla", "n_head"),
}
HEADS_TOGETHER = {"attn_kv_b.weight": required("n_lora_kv", "n_embd_kv_b")}

ARCH = Arch(
    name="deepseek2",
    rope=RopeStyle.NORM,
    latent_attention=True,
    block_tensors={
        "attn_norm.weight": required("n_embd"),
        "attn_kv_a_mqa.weight": required("n_embd", "n_embd_kv_a"),
        "attn_kv_a_norm.weight": required("n_lora_kv"),
        "attn_output.weight": required("n_embd_out", "n_embd"),
        **FFN_NORM,
    },
    block_forms={
        "n_lora_q": (LOW_RANK_QUERIES, {"attn_q.weight": required("n_embd", "n_embd_q")}),
        "is_mla": (HEADS_APART, HEADS_TOGETHER),
    },
    moe_tensors={**SELECTION_BIAS, **SHARED_EXPERT},
    dense_tensors=DENSE,
    # The first files of GLM-4.7-Flash do not say it.
    expert_gating_by_vocab={154880: Gating.SIGMOID},
    expert_weights_norm=False,
)
