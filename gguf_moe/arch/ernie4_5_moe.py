"""ernie4_5-moe: ERNIE-4.5-21B-A3B and 300B-A47B. Softmax router with a bias for the choice."""

from gguf_moe.arch.base import (
    ATTENTION,
    DENSE,
    FFN_NORM,
    OPTIONAL_SHARED_EXPERT,
    SELECTION_BIAS,
    Arch,
    RopeStyle,
)

ARCH = Arch(
    name="ernie4_5-moe",
    rope=RopeStyle.NORM,
    block_tensors={**ATTENTION, **FFN_NORM},
    moe_tensors={**SELECTION_BIAS, **OPTIONAL_SHARED_EXPERT},
    dense_tensors=DENSE,
)
