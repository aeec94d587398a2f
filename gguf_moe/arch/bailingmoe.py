"""bailingmoe: Ling-lite and Ling-plus. A shared expert in every block."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, SHARED_EXPERT, Arch, RopeStyle

ARCH = Arch(
    name="bailingmoe",
    rope=RopeStyle.NORM,
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors=SHARED_EXPERT,
    expert_weights_norm=False,
)
