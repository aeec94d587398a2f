"""What a file says of its model: architecture, numbers and tensors."""

from __future__ import annotations

from gguf_moe.arch import find_arch
from gguf_moe.arch.base import Arch
from gguf_moe.arch.hparams import HParams, read_hparams
from gguf_moe.arch.weights import Weights, load_weights
from gguf_moe.checkpoint import Checkpoint


def read_model(checkpoint: Checkpoint) -> tuple[Arch, HParams, Weights]:
    """The architecture, its numbers, and its tensors, which are views into the file.

    Raises UnsupportedModelError for what is not supported, and GGUFError for a file that contradicts itself.
    """
    arch = find_arch(checkpoint.metadata)
    hparams = read_hparams(checkpoint.metadata, arch)
    return arch, hparams, load_weights(checkpoint, arch, hparams)
