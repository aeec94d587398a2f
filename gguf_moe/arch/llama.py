"""llama: Llama and Mistral models, and Mixtral as their mixture of experts."""

from gguf_moe.arch.base import ATTENTION, DENSE, FFN_NORM, OUTER, ROPE_FACTORS, Arch, RopeStyle

ARCH = Arch(
    name="llama",
    rope=RopeStyle.NORM,
    tensors={**OUTER, **ROPE_FACTORS},
    block_tensors={**ATTENTION, **FFN_NORM},
    dense_tensors=DENSE,
)
