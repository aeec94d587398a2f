"""Scales of whole matrices, which NVFP4 files have beside those of the blocks: NAME.scale for NAME.weight.

Experts have theirs in one tensor for all (ffn_up_exps.scale), which the decoder uses as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gguf_moe.arch.base import Shape
from gguf_moe.checkpoint import Checkpoint
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe_kernels.quants import GGMLType


def is_scalable(name: str, shape: Shape) -> bool:
    """Whether a file may have a scale for this tensor: for matrices, but not for the token embeddings."""
    is_matrix = len(shape.dimensions) == 2 and name.endswith(".weight")
    return is_matrix and not name.startswith(("token_embd.", "ffn_gate_inp"))


def names_with_scales(table: Mapping[str, Shape]) -> set[str]:
    """The names of a table, and of the scales that its matrices may have.

    An input_scale is for activations that are quantized to NVFP4 too; here they never are.
    """
    matrices = [name.removesuffix("weight") for name, shape in table.items() if is_scalable(name, shape)]
    return {*table, *(f"{name}{kind}" for name in matrices for kind in ("scale", "input_scale"))}


def check_scale(checkpoint: Checkpoint, name: str) -> None:
    """Check the scale of the matrix of this name, if it has one.

    Raises GGUFError if it is no F32 number, and UnsupportedModelError if the matrix also has a bias.
    """
    scale, bias = (f"{name.removesuffix('weight')}{kind}" for kind in ("scale", "bias"))
    if scale not in checkpoint.tensors:
        return
    if checkpoint.tensor(scale, (1,)).qtype != GGMLType.F32:
        raise GGUFError(f"{checkpoint.path}: {scale} is not F32; convert the file again.")
    if bias in checkpoint.tensors:
        raise UnsupportedModelError(
            f"{checkpoint.path}: {name} has a scale and a bias, which are not supported together; "
            "use another file of the model."
        )


def scales_of_matrices(checkpoint: Checkpoint) -> dict[str, float]:
    """What a matrix's products are multiplied by, by the matrix's name in the file."""
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(".scale") and tensor.shape == (1,) and tensor.qtype == GGMLType.F32:
            found[f"{name.removesuffix('scale')}weight"] = float(tensor.data.view(np.float32)[0])
    return found
