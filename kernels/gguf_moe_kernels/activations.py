"""The three int8 formats of activations, and which one meets which weight type (as in ggml-cpu.c).

A row of n activations is stored as planes, one after the other, each for a whole number of four blocks
(n4 is n rounded up to that), and padded to a multiple of 64 bytes:

    Q8_0   int8 [n4], f32 scale [n4 / 32], i32 sum [n4 / 32]     sum of the block's int8
    Q8_1   int8 [n4], f32 scale [n4 / 32], f32 sum [n4 / 32]     scale * (sum of the block's int8)
    Q8_K   int8 [n4], f32 scale [n4 / 256], i16 sum [n4 / 1024, 8, 4, 2]

A sum of Q8_K is of 16 int8: number [f, j, m, i] those from 32 j + 16 i on in block 4 f + m. So the sums that
16 lanes of a kernel need together lie together.

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
        block_size = self.block_size
        fours = -(-n // (4 * block_size))
        sums = 128 if self is ActivationFormat.Q8_K else 16
        return -(-fours * (4 * block_size + 16 + sums) // 64) * 64

    @property
    def block_size(self) -> int:
        """Activations with one scale, in the int8 formats."""
        return 256 if self is ActivationFormat.Q8_K else 32


_T = GGMLType
_FORMATS = {
    ActivationFormat.F32: (_T.F32, _T.F16, _T.BF16),
    ActivationFormat.Q8_0: (_T.Q4_0, _T.Q5_0, _T.Q8_0, _T.IQ4_NL, _T.MXFP4, _T.NVFP4),
    ActivationFormat.Q8_1: (_T.Q4_1, _T.Q5_1),
    ActivationFormat.Q8_K: (
        *(_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K),
        *(_T.IQ4_XS, _T.IQ3_S, _T.IQ3_XXS, _T.IQ2_S, _T.IQ2_XS, _T.IQ2_XXS, _T.IQ1_M, _T.IQ1_S),
        *(_T.TQ2_0, _T.TQ1_0),
    ),
}
ACTIVATION_FORMAT: dict[GGMLType, ActivationFormat] = {
    qtype: activation for activation, qtypes in _FORMATS.items() for qtype in qtypes
}
"""Weight type -> the format of the activations it meets. These are also the types that have kernels."""
