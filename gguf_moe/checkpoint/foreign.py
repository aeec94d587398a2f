"""What a file is that is not a complete, readable GGUF file, and what its owner can do about it."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe.hub.names import PART_NAME

MAGIC = b"GGUF"

# Pieces made with `split` or by hand: x.gguf-split-a, x.gguf.part1of2, x.gguf.part-aa, x.gguf.001
_PIECE_NAME = re.compile(
    r"(?P<whole>.*\.gguf)[-._](?:(?:split|part)[-._]?[0-9a-z]{1,3}(?:of[0-9]+)?|[0-9]{3})",
    re.DOTALL | re.IGNORECASE,
)

_CONVERT = "convert the model with llama.cpp's convert_hf_to_gguf.py, or download a GGUF file of it"

_SAFETENSORS_HEADER = 100_000_000  # the format's limit, stored as a u64 before the JSON text

_KNOWN = (
    (
        b"version https://git-lfs",
        "a git-LFS pointer, not the file itself",
        "fetch the file with git lfs pull",
    ),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint", f"unpack it, or {_CONVERT}"),
    (b"\x80\x02", "a pickled PyTorch checkpoint", _CONVERT),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"lmgg", "a GGML file, older than GGUF", _CONVERT),
    (b"fmgg", "a GGMF file, older than GGUF", _CONVERT),
    (b"tjgg", "a GGJT file, older than GGUF", _CONVERT),
    (b"FUGG", "a big-endian GGUF file", "download a little-endian file, as nearly all are"),
)


def shown(value: object) -> str:
    """`value` as a message may show it: escaped, and not long."""
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:76] + "..."


def how_to_complete(path: Path) -> str:
    """What to do about a file that ends too early."""
    piece = _PIECE_NAME.fullmatch(path.name)
    if piece is not None:
        return _join(f"{piece['whole']}?*", piece["whole"])
    return "it is incomplete: download it again"


def check_magic(path: Path, data: mmap.mmap | bytes) -> None:
    """Raise GGUFError unless `data` starts like a little-endian GGUF file of version 2 or 3."""
    head = bytes(data[:512])
    if head[:4] != MAGIC:
        what, remedy = _describe(path, head)
        raise GGUFError(f"{path} is {what}; {remedy}.")
    if len(head) < 8:
        raise GGUFError(f"{path}: the file ends inside its header; {how_to_complete(path)}.")
    version = int.from_bytes(head[4:8], "little")
    if version in (2, 3):
        return
    if version and version % 65536 == 0:
        raise UnsupportedModelError(
            f"{path} is a big-endian GGUF file; download a little-endian file, as nearly all are."
        )
    if version == 1:
        raise UnsupportedModelError(
            f"{path} is a GGUF file of version 1, which was replaced in 2023; {_CONVERT}."
        )
    if version == 0:
        raise GGUFError(
            f"{path} has the GGUF version 0, which never existed; the file is damaged: download it again."
        )
    raise UnsupportedModelError(
        f"{path} is a GGUF file of version {version}, but the newest known here is 3; update gguf-moe."
    )


def _describe(path: Path, head: bytes) -> tuple[str, str]:
    """What a file without the magic is, and what to do."""
    if not head:
        return "empty", "download it again"
    for start, what, remedy in _KNOWN:
        if head.startswith(start):
            return what, remedy
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not a model", "the download got an error or login page: download it again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER:
        return "a safetensors file", _CONVERT
    if not any(head):
        return (
            "not a GGUF file: it starts with zeros",
            "the download was cut off or never begun: download it again",
        )
    not_gguf = f"not a GGUF file: it starts with {shown(head[:4])}"
    piece, part = _PIECE_NAME.fullmatch(path.name), PART_NAME.fullmatch(path.name)
    if piece is not None:
        return not_gguf, how_to_complete(path)
    if part is not None:
        return not_gguf, _join(f"{part['stem']}-*-of-{part['count']}.gguf", f"{part['stem']}.gguf")
    return not_gguf, f"give a GGUF file; if this is a model in another format, {_CONVERT}"


def _join(pieces: str, whole: str) -> str:
    return f"it is one piece of a file that was cut: join all pieces with cat {pieces} > {whole}"
