"""dots1: dots.llm1. Sigmoid router with a bias for the choice; leading dense blocks; a shared expert."""

from gguf_moe.arch.base import (
    ATTENTION,
    DENSE,
    FFN_NORM,
    QK_NORM,
    SELECTION_BIAS,
    SHARED_EXPERT,
    Arch,
    RopeStyle,
)
from gguf_moe_kernels.gating import Gating

ARCH = Arch(
    name="dots1",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **QK_NORM, **FFN_NORM},
    moe_tensors={**SELECTION_BIAS, **SHARED_EXPERT},
    dense_tensors=DENSE,
    expert_gating_func=Gating.SIGMOID,
    expert_weights_norm=False,
)
