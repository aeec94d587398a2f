"""How many rows of a weight a warp takes at once, where there is one row of activations.

Many share the activations, few leave more warps that hide each other's waiting. Measured on an H100 with the
matrices of Mixtral-8x7B, Q3_K and Q5_0 on an H200; see BENCHMARKS.md.
"""

from __future__ import annotations

FLOATS = ("f32", "f16", "bf16")
_DENSE = dict.fromkeys(FLOATS, 1) | dict.fromkeys(("q3_k", "q4_k", "q5_0", "q6_k", "q8_0"), 2)
_BY_EXPERT = dict.fromkeys(FLOATS, 1) | {"q6_k": 2}
_OTHERS = 4


def warp_rows(qtype: str) -> int:
    """Of a dense weight of this type."""
    return _DENSE.get(qtype, _OTHERS)


def warp_rows_by_expert(qtype: str) -> int:
    """Of an expert's weight of this type."""
    return _BY_EXPERT.get(qtype, _OTHERS)
