"""granitemoe: Granite 3 and 4 with experts. Constants scale embeddings, scores, branches and logits."""

from gguf_moe.arch.base import (
    ATTENTION,
    DENSE,
    FFN_NORM,
    OPTIONAL_SHARED_EXPERT,
    OUTER,
    ROPE_FACTORS,
    Arch,
    RopeStyle,
)

ARCH = Arch(
    name="granitemoe",
    rope=RopeStyle.NORM,
    tensors={**OUTER, **ROPE_FACTORS},
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors=OPTIONAL_SHARED_EXPERT,
    dense_tensors=DENSE,
)
