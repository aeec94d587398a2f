"""hunyuan-moe: Hunyuan-A13B. Query and key heads are normed after rope; a shared expert in every block."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, QK_NORM, SHARED_EXPERT, Arch, RopeStyle

ARCH = Arch(
    name="hunyuan-moe",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **QK_NORM, **FFN_NORM},
    norms_after_rope=True,
    moe_tensors=SHARED_EXPERT,
)
