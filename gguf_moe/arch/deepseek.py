"""deepseek: DeepSeek-MoE-16B. The first blocks are dense, the others have a shared expert."""

from gguf_moe.arch.base import ATTENTION, DENSE, FFN_NORM, SHARED_EXPERT, Arch, RopeStyle

ARCH = Arch(
    name="deepseek",
    rope=RopeStyle.NORM,
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors=SHARED_EXPERT,
    dense_tensors=DENSE,
    expert_weights_norm=False,
)
