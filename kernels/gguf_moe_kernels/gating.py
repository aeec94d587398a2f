"""How a router turns its logits into weights, by GGUF's own numbers ({arch}.expert_gating_func)."""

from __future__ import annotations

import enum


class Gating(enum.IntEnum):
    """The values of expert_gating_func (llama.cpp: enum llama_expert_gating_func_type)."""

    SOFTMAX = 1
    SIGMOID = 2
    SOFTMAX_WEIGHT = 3
    """Top-k on the logits, then softmax over the chosen."""
    SIGMOID_WEIGHT = -1
    """Top-k on the logits, then sigmoid of the chosen. GGUF has no number for it: it is llama4's own."""
