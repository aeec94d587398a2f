"""bailingmoe2: Ling-mini-2.0, Ling-flash-2.0 and Ring. Sigmoid router with groups of experts."""

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
    name="bailingmoe2",
    rope=RopeStyle.NEOX,
    block_tensors={**ATTENTION, **QK_NORM, **FFN_NORM},
    moe_tensors={**SELECTION_BIAS, **SHARED_EXPERT},
    dense_tensors=DENSE,
    expert_gating_func=Gating.SIGMOID,
    expert_weights_norm=False,
)
