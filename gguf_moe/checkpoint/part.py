"""One file: opened, mapped, and checked. A split model has several."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from gguf_moe.checkpoint.foreign import check_magic, how_to_complete
from gguf_moe.checkpoint.layout import Place, place_tensors
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.checkpoint.parser import parse_header
from gguf_moe.errors import GGUFError, OutOfMemoryError

_PAGE = 4096
_READ_CHUNK = 64 << 20  # bytes between two reports of progress


@dataclass(frozen=True, slots=True)
class Part:
    """One checked file, and a shared read-only map of all of it."""

    path: Path
    metadata: Metadata
    places: list[Place]
    map: mmap.mmap

    @property
    def nbytes(self) -> int:
        return len(self.map)

    def mapped(self) -> np.ndarray:
        """The file's bytes where the map has them: u8 [nbytes], read-only. The array keeps the map alive."""
        return np.frombuffer(self.map, np.uint8)

    def read(self, report: Callable[[int], None]) -> np.ndarray:
        """The file's bytes read into memory of our own: u8 [nbytes], read-only, page-aligned.

        `report` gets the number of new bytes after each chunk. Raises GGUFError when the file became shorter
        or cannot be read, and OutOfMemoryError.
        """
        try:
            memory = np.empty(self.nbytes + _PAGE, np.uint8)
        except MemoryError:
            raise OutOfMemoryError(
                f"{self.path}: there is no memory to read its {self.nbytes} bytes into; "
                "let the file be mapped (without --no-mmap), or use a smaller file."
            ) from None
        start = -memory.__array_interface__["data"][0] % _PAGE
        data = memory[start : start + self.nbytes]
        with _open_regular(self.path) as file:
            done = 0
            while done < self.nbytes:
                n = _readinto(self.path, file, data[done : done + _READ_CHUNK])
                done += n
                report(n)
        data.flags.writeable = False
        return data


def open_part(path: Path) -> Part:
    """Open, map and check one file. Raises GGUFError or UnsupportedModelError."""
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # which mmap refuses
            check_magic(path, b"")
        try:
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise GGUFError(f"{path} cannot be mapped ({error}); copy it to a local disk.") from error
    _ask_for_huge_pages(data)
    header = parse_header(path, data)
    metadata = Metadata(path, header.values, header.type_names)
    return Part(path, metadata, place_tensors(path, header, metadata, size), data)


def _ask_for_huge_pages(data: mmap.mmap) -> None:
    """Weights are read up to a tenth faster from pages of 2 MiB, if the system has such pages for files."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            data.madvise(mmap.MADV_HUGEPAGE)


def _open_regular(path: Path) -> FileIO:
    """Open a regular file. What blocks (a FIFO) or never ends (a device) is refused without opening it."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GGUFError(f"{path} cannot be opened ({reason}); check the path and its permissions.") from error
    if stat.S_ISDIR(mode):
        raise GGUFError(f"{path} is a directory; give the GGUF file in it, of a split model any part.")
    raise GGUFError(f"{path} is not a regular file but a pipe, socket or device; give a GGUF file on a disk.")


def _readinto(path: Path, file: FileIO, chunk: np.ndarray) -> int:
    try:
        n = file.readinto(chunk.data)
    except OSError as error:
        raise GGUFError(f"{path} cannot be read ({error.strerror}); check the disk.") from error
    if not n:
        raise GGUFError(f"{path} became shorter while it was read; {how_to_complete(path)}.")
    return n
