"""A conversation's tokens with their keys and values in a file, so that a long prompt is computed once.

The file: MAGIC; the header's length, u64; the header, JSON in UTF-8; the token ids, i32; the bytes of each
buffer in the header's order; the SHA-256 of all that comes before it. Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gguf_moe.checkpoint import Checkpoint
from gguf_moe.errors import ContextFullError, GGUFMoeError
from gguf_moe.files import written_whole
from gguf_moe.runtime.context import Context

MAGIC = b"gguf-moe session"
MAX_HEADER = 1 << 22
CHUNK = 1 << 24
SAMPLE = 1024
"""Bytes of each tensor that tell models apart."""
_LENGTH = struct.Struct("<Q")
_SUM = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class _Header:
    owner: str
    n_tokens: int
    buffers: dict[str, int]
    """Name -> bytes."""
    start: int
    """Where the tokens begin."""

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return self.start + 4 * self.n_tokens + sum(self.buffers.values()) + _SUM


def save_session(path: str | os.PathLike[str], context: Context, checkpoint: Checkpoint) -> int:
    """Write what the context holds, whole or not at all; how many tokens. Raises GGUFMoeError."""
    path = Path(path)
    tokens = context.tokens
    sizes = {part.name: part.nbytes for part in context.state.parts(len(tokens))}
    header = {"version": 1, "model": _owner(context, checkpoint), "n_tokens": len(tokens), "buffers": sizes}
    text = json.dumps(header).encode()
    try:
        with written_whole(path) as file:
            checked = _Summed(file)
            checked.write(MAGIC + _LENGTH.pack(len(text)) + text)
            checked.write(np.asarray(tokens, "<i4").tobytes())
            for part in context.state.parts(len(tokens)):
                checked.write(context.state.read(part).tobytes())
            file.write(checked.digest())
    except OSError as e:
        raise GGUFMoeError(
            f"{path}: the session cannot be saved ({e.strerror}); choose another place."
        ) from None
    return len(tokens)


def load_session(path: str | os.PathLike[str], context: Context, checkpoint: Checkpoint) -> list[int]:
    """Let the context hold what a file has; its tokens. Nothing changes if the file is not right for it.

    Raises GGUFMoeError if the file is damaged or is another model's, ContextFullError if it has too much.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            if header.owner != _owner(context, checkpoint):
                raise GGUFMoeError(
                    f"{path}: this session is of another model, or of other settings (--kv); "
                    "use it with those that saved it."
                )
            if header.n_tokens > context.n_ctx:
                raise ContextFullError(
                    f"{path}: the session has {header.n_tokens} tokens, but the context holds "
                    f"{context.n_ctx}; use a larger context (--ctx)."
                )
            _check_sum(path, file, header)
            return _read_state(path, file, header, context)
    except OSError as e:
        raise GGUFMoeError(f"{path}: the session cannot be read ({e.strerror}).") from None


def _read_state(path: Path, file: BinaryIO, header: _Header, context: Context) -> list[int]:
    file.seek(header.start)
    tokens: list[int] = np.frombuffer(file.read(4 * header.n_tokens), "<i4").tolist()
    parts = context.state.parts(header.n_tokens)
    if {part.name: part.nbytes for part in parts} != header.buffers:
        raise _damaged(path)
    context.truncate(0)
    for part in parts:
        context.state.write(part, np.frombuffer(file.read(part.nbytes), np.uint8))
    context.state.hold(tokens)
    return tokens


def _read_header(path: Path, file: BinaryIO) -> _Header:
    begin = file.read(len(MAGIC) + _LENGTH.size)
    if not begin.startswith(MAGIC) or len(begin) < len(MAGIC) + _LENGTH.size:
        raise GGUFMoeError(f"{path} is no session of gguf-moe; give a file that save_session has written.")
    (length,) = _LENGTH.unpack(begin[len(MAGIC) :])
    if length > MAX_HEADER:
        raise _damaged(path)
    try:
        content: dict[str, Any] = json.loads(file.read(length))
        if (version := content.get("version")) != 1:
            raise GGUFMoeError(
                f"{path}: the session is of version {str(version)[:20]}, not 1; "
                "compute the prompt again and save it anew."
            )
        header = _Header(content["model"], content["n_tokens"], content["buffers"], len(begin) + length)
        numbers = [header.n_tokens, *header.buffers.values()]
        sound = all(isinstance(n, int) and n >= 0 for n in numbers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None
    if not sound or header.nbytes != os.fstat(file.fileno()).st_size:
        raise _damaged(path)
    return header


def _check_sum(path: Path, file: BinaryIO, header: _Header) -> None:
    file.seek(0)
    digest = hashlib.sha256()
    for chunk in _chunks(file, header.nbytes - _SUM):
        digest.update(chunk)
    if file.read(_SUM) != digest.digest():
        raise _damaged(path)


def _chunks(file: BinaryIO, nbytes: int) -> Iterator[bytes]:
    for start in range(0, nbytes, CHUNK):
        yield file.read(min(CHUNK, nbytes - start))


def _owner(context: Context, checkpoint: Checkpoint) -> str:
    """What tells this model, and the way in which it fills its cache, from others."""
    digest = hashlib.sha256(context.cache_layout())
    metadata = checkpoint.metadata
    for key in sorted(metadata):
        if not key.startswith(("general.", "tokenizer.chat_template")) and isinstance(
            metadata[key], str | int | float
        ):
            digest.update(f"{key} {metadata[key]}".encode())
    for tensor in checkpoint.tensors.values():
        digest.update(f"{tensor.name} {tensor.qtype.name} {tensor.shape}".encode())
        digest.update(tensor.data[:SAMPLE].tobytes())
    return digest.hexdigest()


class _Summed:
    """Writes to a file and sums up what was written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sum = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._sum.update(data)
        self._file.write(data)

    def digest(self) -> bytes:
        return self._sum.digest()


def _damaged(path: Path) -> GGUFMoeError:
    return GGUFMoeError(f"{path}: the session is damaged; compute the prompt again and save it anew.")
