"""The three int8 formats of activations, and which one meets which weight type (as in ggml-cpu.c).

A row of n activations is stored as planes, one after the other, and padded to a multiple of 64 bytes:

    Q8_0   int8 [n], f32 scale [n / 32]
    Q8_1   int8 [n], f32 scale [n / 32], f32 sum [n / 32]      sum = scale * (sum of the block's int8)
    Q8_K   int8 [n], f32 scale [n / 256], i16 sum [n / 16]     sum of 16 int8

The scales of Q8_0 and Q8_1 and the sums of Q8_1 are rounded to float16, as llama.cpp stores them.
"""

from __future__ import annotations

import enum

from gguf_moe_kernels.quants import GGMLType


class ActivationFormat(enum.Enum):
    """How the activations that meet a weight matrix are stored."""

    F32 = "f32"
    Q8_0 = "q8_0"
    Q8_1 = "q8_1"
    Q8_K = "q8_k"

    def row_size(self, n: int) -> int:
        """Bytes of one row of n activations; n is a multiple of the block size: 32, or 256 for Q8_K."""
        if self is ActivationFormat.F32:
            return 4 * n
        planes = {
            ActivationFormat.Q8_0: n + n // 32 * 4,
            ActivationFormat.Q8_1: n + n // 32 * 8,
            ActivationFormat.Q8_K: n + n // 256 * 4 + n // 16 * 2,
        }
        return -(-planes[self] // 64) * 64


_T = GGMLType
_FORMATS = {
    ActivationFormat.F32: (_T.F32, _T.F16, _T.BF16),
    ActivationFormat.Q8_0: (_T.Q4_0, _T.Q5_0, _T.Q8_0, _T.IQ4_NL, _T.MXFP4),
    ActivationFormat.Q8_1: (_T.Q4_1, _T.Q5_1),
    ActivationFormat.Q8_K: (_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K, _T.IQ4_XS),
}
ACTIVATION_FORMAT: dict[GGMLType, ActivationFormat] = {
    qtype: activation for activation, qtypes in _FORMATS.items() for qtype in qtypes
}
"""Weight type -> the format of the activations it meets. These are also the types that have kernels."""
