"""Numbers that belong to the definition of the arithmetic: every implementation must use the same."""

from __future__ import annotations

import numpy as np

# exp(x) = 2^n * e^r with n = round(x / ln 2) and r = x - n ln 2, where ln 2 is split in two (Cody and Waite).
# The polynomial is the Taylor series of e^r to r^7: its error on |r| <= ln 2 / 2 is 2e-9, below half an ulp.
LOG2_E = np.float32(1.44269504)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = tuple(np.float32(c) for c in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0))
EXP_MIN, EXP_MAX = np.float32(-87.0), np.float32(88.0)
"""exp clamps its argument to this range, where the result is a normal number."""

# log(x) = e ln 2 + log(m) with m from sqrt(1/2) to sqrt(2), and log(m) = 2 atanh(s), s = (m - 1) / (m + 1).
# The polynomial in s^2 is atanh's series from s^3 to s^9; what follows is below 3e-9 of the whole.
SQRT_HALF_BITS = 0x3F3504F3
LOG_COEFFICIENTS = tuple(np.float32(c) for c in (2 / 9, 2 / 7, 2 / 5, 2 / 3))
SOFTPLUS_MAX = np.float32(20.0)
"""softplus(x) = log(1 + e^x) is x beyond this (ggml: op_softplus)."""

SMALLEST_SUM = np.float32(6.103515625e-5)
"""The chosen experts' weights are divided by their sum, but not by less (llama.cpp: build_moe_ffn)."""

OAI_ALPHA, OAI_LIMIT = np.float32(1.702), np.float32(7.0)
"""Of gpt-oss's gated unit (llama.cpp: LLM_FFN_SWIGLU_OAI_MOE)."""

GELU_LINEAR, GELU_CUBIC = np.float32(1.5957691), np.float32(0.071354816)
"""gelu(x) = x * sigmoid(LINEAR * x + CUBIC * x^3): 2 sqrt(2 / pi), and 0.044715 of it (ggml_gelu_f32)."""

SMALLEST_AMAX = np.float32(2.0**-120)
"""A block of activations whose largest magnitude is below this becomes zeros: 127 / amax might overflow."""
