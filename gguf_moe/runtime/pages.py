"""Is a mapped file in memory yet? If not, read it in order before the first token asks for it at random."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable

import numpy as np

from gguf_moe.checkpoint import Checkpoint

READ_SIZE = 8 << 20
MOSTLY = 0.95
"""A file of which this share is in the page cache is left alone."""


def resident_share(checkpoint: Checkpoint) -> float:
    """The share of the tensors' pages that are in memory; 1.0 where the system doesn't tell."""
    if sys.platform != "linux":
        return 1.0
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
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
    buffer = bytearray(READ_SIZE)
    done = 0
    for path in checkpoint.paths:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while n := file.readinto(buffer):
                done += n
                if progress:
                    progress(done, checkpoint.nbytes)
