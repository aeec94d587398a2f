"""qwen3moe: Qwen3-30B-A3B, Qwen3-Coder-30B and Qwen3-235B-A22B. Every query and key head has a norm."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, QK_NORM, Arch, RopeStyle

ARCH = Arch(
    name="qwen3moe",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **QK_NORM, **FFN_NORM},
    experts_share_n_ff=True,
)
