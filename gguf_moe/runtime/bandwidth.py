"""How fast this machine reads memory: the limit of decoding, which reads most weights once for each token."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gguf_moe.errors import OutOfMemoryError
from gguf_moe.runtime import machine
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.structs import READ_CHUNK

KERNEL = "bandwidth.read"
BUFFER_SIZE = 512 << 20
"""Bytes of the buffer: many times the last-level cache."""
PASSES = 4


class BandwidthMeter:
    """A buffer to read, and the kernel that reads it. Each thread reads as much as the buffer has in a pass.

    The library must stay open as long as the meter is used. buffer_size: bytes, a multiple of READ_CHUNK;
    None takes BUFFER_SIZE.
    Raises OutOfMemoryError.
    """

    def __init__(self, library: KernelLibrary, buffer_size: int | None = None):
        buffer_size = buffer_size or BUFFER_SIZE
        if buffer_size > (available := machine.available_memory()):
            raise OutOfMemoryError(
                f"measuring the read bandwidth needs {buffer_size >> 20} MiB, but {available >> 20} MiB are "
                "available; use a smaller model or close other programs."
            )
        function_type = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
        self._read = function_type(library.address(KERNEL))
        # Written, or all pages would be the system's one page of zeros, which the cache holds.
        self._buffer = np.ones(buffer_size // 8, np.int64)
        self._claimed = np.zeros(1, np.int64)

    def measure(self, n_threads: int) -> float:
        """Bytes per second that n_threads threads read together, the best of a few passes of some 20 ms."""
        total = self._buffer.nbytes * n_threads
        with ThreadPoolExecutor(n_threads, thread_name_prefix="gguf-moe-read") as pool:
            self._pass(pool, n_threads, n_threads * READ_CHUNK)  # the threads start and the kernel is warm
            return total / min(self._pass(pool, n_threads, total) for _ in range(PASSES))

    def _pass(self, pool: ThreadPoolExecutor, n_threads: int, total: int) -> float:
        """Seconds in which all threads together read `total` bytes."""
        buffer, claimed = (a.__array_interface__["data"][0] for a in (self._buffer, self._claimed))
        self._claimed[0] = 0
        start = time.perf_counter()
        done = [
            pool.submit(self._read, buffer, self._buffer.nbytes, total, claimed) for _ in range(n_threads)
        ]
        for thread in done:
            thread.result()
        return time.perf_counter() - start
