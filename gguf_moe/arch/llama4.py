"""llama4: Llama 4 Scout and Maverick. Of four layers three see a stretch of positions, one has no rope."""

from gguf_moe.arch.base import (
    ATTENTION,
    DENSE,
    FFN_NORM,
    OUTER,
    ROPE_FACTORS,
    SHARED_EXPERT,
    Arch,
    RopeStyle,
    Temperature,
)
from gguf_moe_kernels.gating import Gating

ARCH = Arch(
    name="llama4",
    rope=RopeStyle.NORM,
    tensors={**OUTER, "rope_freqs.weight": ROPE_FACTORS["rope_freqs.weight"]},
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors=SHARED_EXPERT,
    dense_tensors=DENSE,
    bare_kq_norm=True,
    n_expert_without_kq_norm=128,
    n_no_rope_layer_step=4,
    attn_temperature=Temperature(scale=0.1, length=8192, offset=1.0),
    n_attn_chunk=8192,
    n_swa_pattern=4,
    expert_gating_func=Gating.SIGMOID_WEIGHT,
    expert_weights_norm=False,
    weight_before_ffn=True,
)
