"""What is in a file, and whether it runs here: the facts behind `gguf-moe inspect`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights, require_kernels
from gguf_moe.checkpoint import Checkpoint, Metadata, open_checkpoint
from gguf_moe.errors import GGUFMoeError
from gguf_moe.runtime import placement

SHOWN_ITEMS = 8
"""Longer arrays are shown as their type alone."""
REPORT_CONTEXT = 4096

_ROLES = (
    (r"token_embd|output\.weight|output_norm", "embeddings and output"),
    (r"blk\.\d+\.attn", "attention"),
    (r"blk\.\d+\.ssm", "recurrent layers"),
    (r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.", "experts"),
    (r"blk\.\d+\.ffn_\w*shexp", "shared experts"),
    (r"blk\.\d+\.(ffn_gate_inp|exp_probs_b)", "routers"),
    (r"blk\.\d+\.(ffn|post_attention_norm)", "feed-forward"),
)
_NEXTN = re.compile(r"(blk\.\d+\.)nextn\.")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one role and type together."""

    role: str
    qtype: str
    n_tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """The file runs here if there are no problems; each is one sentence that says what is missing."""

    paths: tuple[Path, ...]
    nbytes: int
    architecture: str
    keys: dict[str, tuple[str, object]]
    """Key -> (type, value); value is None for a long array."""
    groups: list[TensorGroup]
    problems: list[str]
    kv_bytes: dict[int, int]
    """Context length -> bytes of the KV cache."""


def inspect_file(path: str | os.PathLike[str]) -> Report:
    """Read a file's header. Raises GGUFError if it is not a sound GGUF file."""
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata
        problems, kv_bytes = _verdict(checkpoint)
        architecture = metadata.get("general.architecture")
        return Report(
            paths=checkpoint.paths,
            nbytes=checkpoint.nbytes,
            architecture=architecture if isinstance(architecture, str) else "",
            keys={key: (metadata.type_name(key), _short(metadata, key)) for key in metadata},
            groups=_groups(checkpoint),
            problems=problems,
            kv_bytes=kv_bytes,
        )


def _verdict(checkpoint: Checkpoint) -> tuple[list[str], dict[int, int]]:
    """All that keeps the file from running here, and what the KV cache takes if nothing does."""
    from gguf_moe.text.tokenizer import build_tokenizer

    problems: list[str] = []
    hparams = kind = None
    with _noting(problems):
        arch = find_arch(checkpoint.metadata)
        hparams = read_hparams(checkpoint.metadata, arch)
        kind = placement.kv_kind(None, hparams, load_weights(checkpoint, arch, hparams))
    if hparams is None:  # no tensors were looked up; then all of them count
        with _noting(problems):
            require_kernels(checkpoint, [tensor.qtype for tensor in checkpoint.tensors.values()])
    with _noting(problems):
        build_tokenizer(checkpoint.metadata)
    if hparams is None or kind is None or problems:
        return problems, {}
    lengths = sorted({min(REPORT_CONTEXT, hparams.n_ctx_train), hparams.n_ctx_train})
    return [], {n: placement.cache_bytes(hparams, n, kind) for n in lengths}


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Add the user's error that is raised inside, if any, to `problems`."""
    try:
        yield
    except GGUFMoeError as e:
        problems.append(str(e))


def _groups(checkpoint: Checkpoint) -> list[TensorGroup]:
    groups: dict[tuple[str, str], list[int]] = {}
    nextn = tuple({match[1] for name in checkpoint.tensors if (match := _NEXTN.match(name))})
    for tensor in checkpoint.tensors.values():
        role = next((role for pattern, role in _ROLES if re.match(pattern, tensor.name)), "other")
        if tensor.name.startswith(nextn):
            role = "NextN, not used"
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
