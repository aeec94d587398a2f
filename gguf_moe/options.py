"""What a caller may choose when loading a model, checked once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gguf_moe.errors import OptionError

KV_TYPES = ("f16", "f32", "q8_0")
"""What the KV cache may hold. q8_0 takes heads of 32, 64, ... elements."""


def default_cache_dir() -> Path | None:
    """Where compiled kernels are kept: .cache/gguf-moe/kernels in the home directory, if there is one."""
    try:
        return Path.home() / ".cache" / "gguf-moe" / "kernels"
    except RuntimeError:
        return None


@dataclass(frozen=True, slots=True)
class Options:
    """Raises OptionError for a value out of range.

    n_ctx: positions of the KV cache; None takes what the file was trained for, or what fits into memory.
    threads: None takes the physical cores this process may use.
    device: "auto" (a GPU if there is one that can run the model, else the CPU), "cpu", "cuda" or "cuda:N".
    vram: GPU memory that may be used, as "12G", "8000M" or "0.5" (of all); None takes what is free.
    policy: which experts the GPU keeps, a key of gguf_moe.experts.cache.POLICIES.
    heat: a file that Model.save_heat wrote; the GPU begins with the experts that were hot then.
    kv_type: one of KV_TYPES; None takes f32 if the file's matrices are F32, else f16.
    mmap: use the file where it lies; False reads it into memory.
    pre_tokenizer: overrides tokenizer.ggml.pre.
    cache_dir: where compiled kernels are kept, a Path or a text; None keeps them in memory only.
    n_batch: longest chunk of a prompt in one step.
    parallel: conversations that `Model.scheduler` computes at once, each with a KV cache of n_ctx positions.
    """

    n_ctx: int | None = None
    threads: int | None = None
    device: str = "auto"
    vram: str | None = None
    policy: str = "decayed"
    heat: str | os.PathLike[str] | None = None
    kv_type: str | None = None
    mmap: bool = True
    pre_tokenizer: str | None = None
    cache_dir: Path | None = field(default_factory=default_cache_dir)
    n_batch: int = 512
    parallel: int = 1

    def __post_init__(self) -> None:
        if self.cache_dir == "":
            raise OptionError("cache_dir is empty; give a directory, or None to keep kernels in memory only.")
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        _check_count("n_ctx", self.n_ctx, 1 << 30)
        _check_count("threads", self.threads, 1024)
        _check_count("n_batch", self.n_batch, 1 << 16)
        _check_count("parallel", self.parallel, 256)
        if self.kv_type not in (None, *KV_TYPES):
            raise OptionError(f"kv_type is {self.kv_type!r}, but must be one of {', '.join(KV_TYPES)}.")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            raise OptionError(f"device is {self.device!r}, but must be auto, cpu, cuda or cuda:N.")


def _check_count(name: str, value: int | None, maximum: int) -> None:
    if value is not None and not 1 <= value <= maximum:
        raise OptionError(f"{name} is {value}, but must be from 1 to {maximum}.")
