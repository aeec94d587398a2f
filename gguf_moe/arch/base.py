"""What an architecture is: data. The decoder (graph/decoder.py) reads it; nothing here computes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf_moe_kernels.gating import Gating


class RopeStyle(enum.Enum):
    """Which elements of a head rope turns together."""

    NORM = "norm"
    """Neighbours: 2i and 2i + 1."""
    NEOX = "neox"
    """Halves: i and i + n_rot / 2."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A tensor's shape in GGUF order (fastest dimension first), as names of HParams fields."""

    dimensions: tuple[str, ...]
    required: bool = True


def required(*dimensions: str) -> Shape:
    """A tensor that every file of the architecture has."""
    return Shape(dimensions)


def optional(*dimensions: str) -> Shape:
    """A tensor that files may leave out."""
    return Shape(dimensions, required=False)


@dataclass(frozen=True, slots=True)
class Arch:
    """One general.architecture. The defaults are the plain pre-norm decoder that most files hold."""

    name: str
    """The value of general.architecture, and the name of the file that defines it."""
    rope: RopeStyle
    tensors: Mapping[str, Shape]
    """Tensors outside the blocks, by full name."""
    block_tensors: Mapping[str, Shape]
    """Tensors of each block, by name without "blk.N."; experts and their router are found by role."""
    dense_tensors: Mapping[str, Shape] = field(default_factory=dict)
    """Feed-forward tensors of a block that has no router."""
    expert_gating_func: Gating = Gating.SOFTMAX
    """What the router's logits go through where the file doesn't say."""
    expert_weights_norm: bool = True
    """Whether the chosen experts' weights are made to sum to 1 where the file doesn't say."""
