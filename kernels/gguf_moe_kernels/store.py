"""Compiled code in files: each with its SHA-256, in a directory that belongs to the user alone.

Code from disk is executed, so a directory that others can write to is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_DIGEST_SIZE = 32


class CodeStore:
    """Code by file name. `directory` is made when needed; None, or one that is not private, keeps nothing."""

    def __init__(self, directory: Path | None):
        self.directory = directory if directory is not None and _is_private(directory) else None

    @property
    def is_writable(self) -> bool:
        """Whether `write` can keep something."""
        return self.directory is not None and os.access(self.directory, os.W_OK)

    def read(self, name: str) -> bytes | None:
        """The code of this name; None if there is none, or if its file is damaged."""
        try:
            data = (self.directory / name).read_bytes() if self.directory else b""
        except OSError:
            return None
        digest, code = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
        return code if code and hashlib.sha256(code).digest() == digest else None

    def write(self, name: str, code: bytes) -> None:
        """Keep code. If that fails, a warning is logged, and nothing is kept from then on."""
        if self.directory is None:
            return
        path = self.directory / name
        unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            unfinished.write_bytes(hashlib.sha256(code).digest() + code)
            unfinished.replace(path)
        except OSError as e:
            _warn(self.directory, e)
            unfinished.unlink(missing_ok=True)
            self.directory = None


def _is_private(directory: Path) -> bool:
    """Make the directory if it is missing; True if only this user can write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as e:
        _warn(directory, e)
        return False
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        logger.warning(
            "%s is not used for compiled kernels, as other users can write to it; take the right from them "
            "(chmod go-w), or choose another cache directory",
            directory,
        )
        return False
    return True


def _warn(directory: Path, error: OSError) -> None:
    logger.warning(
        "cannot keep compiled kernels in %s (%s), so that every start compiles them again; make room there, "
        "or choose another cache directory",
        directory,
        error.strerror,
    )
