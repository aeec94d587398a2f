"""The architectures, by general.architecture: one line and one file each."""

from __future__ import annotations

import difflib

from gguf_moe.arch import (
    bailingmoe,
    bailingmoe2,
    deepseek,
    deepseek2,
    dots1,
    ernie4_5_moe,
    gemma4,
    glm4moe,
    gpt_oss,
    granitemoe,
    hunyuan_moe,
    llama,
    llama4,
    mellum,
    minimax_m2,
    olmoe,
    phimoe,
    qwen2moe,
    qwen3moe,
    qwen3next,
    qwen35moe,
)
from gguf_moe.arch.base import Arch
from gguf_moe.checkpoint.foreign import shown
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import UnsupportedModelError

_MODULES = (
    bailingmoe,
    bailingmoe2,
    deepseek,
    deepseek2,
    dots1,
    ernie4_5_moe,
    gemma4,
    glm4moe,
    gpt_oss,
    granitemoe,
    hunyuan_moe,
    llama,
    llama4,
    mellum,
    minimax_m2,
    olmoe,
    phimoe,
    qwen2moe,
    qwen3moe,
    qwen35moe,
    qwen3next,
)
ARCHS: dict[str, Arch] = {module.ARCH.name: module.ARCH for module in _MODULES}


def find_arch(metadata: Metadata) -> Arch:
    """The architecture of a file. Raises UnsupportedModelError, with the nearest one that is supported."""
    kind = metadata.string("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(
            f"{metadata.path}: this is no language model, as general.type is {shown(kind)}; "
            "use the file of the model that it belongs to."
        )
    name = metadata.architecture
    if name in ARCHS:
        return ARCHS[name]
    nearest = difflib.get_close_matches(name[:80], ARCHS, n=1, cutoff=0.0)
    raise UnsupportedModelError(
        f"{metadata.path}: the architecture {shown(name)} is not supported (the nearest is {nearest[0]!r}; "
        f"supported: {', '.join(sorted(ARCHS))}); use a file of a supported architecture."
    )
