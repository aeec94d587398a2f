"""The tensor types of GGUF: ids, block sizes and bytes, as in ggml.h (enum ggml_type) and ggml-common.h."""

from __future__ import annotations

import enum


class GGMLType(enum.IntEnum):
    """A tensor's type id, as a GGUF file stores it."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_size(self) -> int:
        """Elements in one block."""
        return _SIZES[self][0]

    @property
    def type_size(self) -> int:
        """Bytes of one block."""
        return _SIZES[self][1]

    def row_size(self, n: int) -> int:
        """Bytes of a row of `n` elements; `n` is a multiple of the block size."""
        return n // self.block_size * self.type_size


_T = GGMLType
_SIZES: dict[GGMLType, tuple[int, int]] = {
    _T.F32: (1, 4),
    _T.F16: (1, 2),
    _T.BF16: (1, 2),
    _T.F64: (1, 8),
    _T.I8: (1, 1),
    _T.I16: (1, 2),
    _T.I32: (1, 4),
    _T.I64: (1, 8),
    _T.Q4_0: (32, 18),
    _T.Q4_1: (32, 20),
    _T.Q5_0: (32, 22),
    _T.Q5_1: (32, 24),
    _T.Q8_0: (32, 34),
    _T.Q8_1: (32, 36),
    _T.IQ4_NL: (32, 18),
    _T.MXFP4: (32, 17),
    _T.NVFP4: (64, 36),
    _T.Q2_0: (64, 18),
    _T.Q1_0: (128, 18),
    _T.Q2_K: (256, 84),
    _T.Q3_K: (256, 110),
    _T.Q4_K: (256, 144),
    _T.Q5_K: (256, 176),
    _T.Q6_K: (256, 210),
    _T.Q8_K: (256, 292),
    _T.IQ1_S: (256, 50),
    _T.IQ1_M: (256, 56),
    _T.IQ2_XXS: (256, 66),
    _T.IQ2_XS: (256, 74),
    _T.IQ2_S: (256, 82),
    _T.IQ3_XXS: (256, 98),
    _T.IQ3_S: (256, 110),
    _T.IQ4_XS: (256, 136),
    _T.TQ1_0: (256, 54),
    _T.TQ2_0: (256, 66),
}

REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Ids that llama.cpp once wrote and no longer reads."""

FIRST_FOREIGN_TYPE = 97
"""From here on ids belong to forks (ik_llama.cpp's own types)."""
