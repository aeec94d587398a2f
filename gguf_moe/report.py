"""What is in a file, and whether it runs here: the facts behind `gguf-moe inspect`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import Checkpoint, Metadata, open_checkpoint
from gguf_moe.errors import GGUFMoeError
from gguf_moe.runtime import placement

SHOWN_ITEMS = 8
"""Longer arrays are shown as their type alone."""
REPORT_CONTEXT = 4096

_ROLES = (
    (r"token_embd|output\.weight|output_norm", "embeddings and output"),
    (r"blk\.\d+\.attn", "attention"),
    (r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.", "experts"),
    (r"blk\.\d+\.ffn_\w*shexp", "shared experts"),
    (r"blk\.\d+\.ffn_gate_inp", "routers"),
    (r"blk\.\d+\.ffn", "feed-forward"),
)


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one role and type together."""

    role: str
    qtype: str
    n_tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """`problem` is None if the file runs here, else one sentence that says why not."""

    paths: tuple[Path, ...]
    nbytes: int
    architecture: str
    keys: dict[str, tuple[str, object]]
    """Key -> (type, value); value is None for a long array."""
    groups: list[TensorGroup]
    problem: str | None
    kv_bytes: dict[int, int]
    """Context length -> bytes of the KV cache."""


def inspect_file(path: str | os.PathLike[str]) -> Report:
    """Read a file's header. Raises GGUFError if it is not a sound GGUF file."""
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata
        problem, kv_bytes = _verdict(checkpoint)
        return Report(
            paths=checkpoint.paths,
            nbytes=checkpoint.nbytes,
            architecture=metadata.architecture,
            keys={key: (metadata.type_name(key), _short(metadata, key)) for key in metadata},
            groups=_groups(checkpoint),
            problem=problem,
            kv_bytes=kv_bytes,
        )


def _verdict(checkpoint: Checkpoint) -> tuple[str | None, dict[int, int]]:
    """Why the file does not run (None if it does), and what the KV cache takes."""
    from gguf_moe.text.tokenizer import build_tokenizer

    try:
        arch = find_arch(checkpoint.metadata)
        hparams = read_hparams(checkpoint.metadata, arch)
        kind = placement.kv_kind(None, load_weights(checkpoint, arch, hparams))
        build_tokenizer(checkpoint.metadata)
    except GGUFMoeError as e:
        return str(e), {}
    lengths = sorted({min(REPORT_CONTEXT, hparams.n_ctx_train), hparams.n_ctx_train})
    return None, {n: placement.cache_bytes(hparams, n, kind) for n in lengths}


def _groups(checkpoint: Checkpoint) -> list[TensorGroup]:
    groups: dict[tuple[str, str], list[int]] = {}
    for tensor in checkpoint.tensors.values():
        role = next((role for pattern, role in _ROLES if re.match(pattern, tensor.name)), "other")
        groups.setdefault((role, tensor.qtype.name), []).append(tensor.nbytes)
    found = [TensorGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()]
    return sorted(found, key=lambda group: -group.nbytes)


def _short(metadata: Metadata, key: str) -> object:
    value = metadata[key]
    if isinstance(value, list | np.ndarray):
        if len(value) > SHOWN_ITEMS:
            return None
        return value.tolist() if isinstance(value, np.ndarray) else list(value)
    return value
