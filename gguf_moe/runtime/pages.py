"""Is a mapped file in memory yet? If not, read it in order before the first token asks for it at random."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gguf_moe.checkpoint import Checkpoint

CHUNK = 64 << 20
"""Bytes read between two reports of progress."""
MOSTLY = 0.95
"""A file of which this share is in the page cache is left alone."""
MADV_POPULATE_READ = 22
"""linux/mman.h, since 5.14: read pages and map them."""


def resident_share(checkpoint: Checkpoint) -> float:
    """The share of the tensors' pages that are in memory; 1.0 where the system doesn't tell."""
    if sys.platform != "linux":
        return 1.0
    mincore = _c_function("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    resident = total = 0
    for tensor in checkpoint.tensors.values():
        start = tensor.address // mmap.PAGESIZE * mmap.PAGESIZE
        length = tensor.address + tensor.nbytes - start
        pages = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
        if mincore(start, length, pages.ctypes.data):
            return 1.0
        resident += int(np.count_nonzero(pages & 1))
        total += len(pages)
    return resident / total if total else 1.0


def read_ahead(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None = None) -> None:
    """Read all parts once, so that the page cache holds them. progress(bytes done, bytes in total)."""
    unused, done = memoryview(bytearray(CHUNK)), 0
    for path, buffer in zip(checkpoint.paths, checkpoint.buffers, strict=True):
        with path.open("rb", buffering=0) as file:
            for start in range(0, len(buffer), CHUNK):
                chunk = buffer[start : start + CHUNK]
                # Through the map, because pages can only become huge when they are read for one.
                if not _populate(chunk):
                    file.seek(start)
                    file.readinto(unused[: len(chunk)])
                done += len(chunk)
                if progress:
                    progress(done, checkpoint.nbytes)


def _populate(mapped: np.ndarray) -> bool:
    """Have pages of a map read; False where the system can't. mapped: u8 [n], from the start of a page on."""
    if sys.platform != "linux":
        return False
    madvise = _c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise(mapped.ctypes.data, mapped.nbytes, MADV_POPULATE_READ) == 0


def _c_function(name: str, *argtypes: Any) -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True)[name]
    function.argtypes = argtypes
    return function
