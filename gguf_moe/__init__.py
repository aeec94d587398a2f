"""gguf-moe: run quantized GGUF mixture-of-experts models.

import gguf_moe

with gguf_moe.load("mixtral.gguf") as model:
    for piece in model.generate("Once upon a time", max_tokens=64):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import os

from gguf_moe.errors import (
    BusyError,
    ConstraintError,
    ContextFullError,
    DeviceError,
    GGUFError,
    GGUFMoeError,
    HubError,
    NumericError,
    OptionError,
    OutOfMemoryError,
    TemplateError,
    UnsupportedModelError,
)

TYPE_CHECKING = False  # `typing` takes longer than all of this, and Ctrl-C is not caught yet
if TYPE_CHECKING:
    from typing import Any

    from gguf_moe.async_model import AsyncModel
    from gguf_moe.chat import Conversation
    from gguf_moe.loading import Progress
    from gguf_moe.model import Model
    from gguf_moe.sample import Sampling
    from gguf_moe.text.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "AsyncModel",
    "BusyError",
    "ConstraintError",
    "ContextFullError",
    "Conversation",
    "DeviceError",
    "GGUFError",
    "GGUFMoeError",
    "HubError",
    "Model",
    "NumericError",
    "OptionError",
    "OutOfMemoryError",
    "Sampling",
    "TemplateError",
    "Tokenizer",
    "UnsupportedModelError",
    "load",
    "load_tokenizer",
]

_LAZY = {
    "AsyncModel": "async_model",
    "Conversation": "chat",
    "Model": "model",
    "Sampling": "sample",
    "Tokenizer": "text.tokenizer",
}


def load(path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any) -> Model:
    """Load a GGUF file (or any part of a split one), or what `gguf-moe pull` downloaded, as "hf:REPO:QUANT".

    The options are the fields of gguf_moe.options.Options: n_ctx, threads, device, vram, policy, heat,
    kv_type, mmap, pre_tokenizer, cache_dir, n_batch. progress(stage, done, total) is called while it loads.
    Raises GGUFMoeError with one sentence that says what is wrong and what to do.
    """
    from gguf_moe.model import Model
    from gguf_moe.options import Options

    return Model(path, Options(**options), progress)


def load_tokenizer(path: str | os.PathLike[str], *, pre_tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file, which needs no weights; a name as "hf:REPO:QUANT" works as for load."""
    from gguf_moe.checkpoint import open_checkpoint
    from gguf_moe.text.tokenizer import build_tokenizer

    with open_checkpoint(path) as checkpoint:
        return build_tokenizer(checkpoint.metadata, pre=pre_tokenizer)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
