"""mellum: Mellum2-12B-A2.5B. As qwen3moe, with a sliding window in three of four blocks."""

from gguf_moe.arch.base import ATTENTION, FFN_NORM, QK_NORM, Arch, RopeStyle

ARCH = Arch(
    name="mellum",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **QK_NORM, **FFN_NORM},
    experts_share_n_ff=True,
    n_swa_pattern=4,
    swa_rope_scaling=False,
)
