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
LEAST_BUFFER = 512 << 20
"""Bytes of the buffer at least."""
TIMES_THE_CACHE = 4
"""How many times the last-level cache the buffer has, where there is memory for it."""
PASS_SIZE = 128 << 20
"""Bytes that each thread reads in a pass."""
PASSES = 4


class BandwidthMeter:
    """A buffer to read, and the kernel that reads it, round and round: each time what was read longest ago.

    The library must stay open as long as the meter is used. buffer: uint8 [n], n >= READ_CHUNK, memory that
    is in use; None makes one, so large that little of it stays in the cache. Raises OutOfMemoryError.
    """

    def __init__(self, library: KernelLibrary, buffer: np.ndarray | None = None):
        function_type = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
        self._read = function_type(library.address(KERNEL))
        self._buffer = _new_buffer() if buffer is None else buffer
        self._size = self._buffer.nbytes // READ_CHUNK * READ_CHUNK
        self._first_pass = self._size if buffer is None else 0
        """Bytes to read before the time counts: some virtual machines give memory that nobody has read for a
        second at half the rate."""
        self._claimed = np.zeros(1, np.int64)
        self._place = 0
        """Where the next pass begins."""

    def measure(self, n_threads: int) -> float:
        """Bytes per second that n_threads threads read together, the best of a few passes of some 20 ms."""
        nbytes = PASS_SIZE * n_threads
        with ThreadPoolExecutor(n_threads, thread_name_prefix="gguf-moe-read") as pool:
            # At least as many as start all threads and make the kernel warm.
            self._pass(pool, n_threads, max(self._first_pass, n_threads * READ_CHUNK))
            return nbytes / min(self._pass(pool, n_threads, nbytes) for _ in range(PASSES))

    def _pass(self, pool: ThreadPoolExecutor, n_threads: int, nbytes: int) -> float:
        """Seconds in which all threads together read nbytes."""
        buffer, claimed = (a.__array_interface__["data"][0] for a in (self._buffer, self._claimed))
        self._claimed[0], end = self._place, self._place + nbytes
        self._place = end % self._size
        start = time.perf_counter()
        done = [pool.submit(self._read, buffer, self._size, end, claimed) for _ in range(n_threads)]
        for thread in done:
            thread.result()
        return time.perf_counter() - start


def _new_buffer() -> np.ndarray:
    """Memory to read: far more than the last-level cache holds, but at most half of what is available."""
    available = machine.available_memory()
    if available < LEAST_BUFFER:
        raise OutOfMemoryError(
            f"measuring the read bandwidth needs {LEAST_BUFFER >> 20} MiB, but {available >> 20} MiB are "
            "available; use a smaller model or close other programs."
        )
    size = max(LEAST_BUFFER, min(TIMES_THE_CACHE * machine.last_level_cache(), available // 2))
    # Written, or all pages would be the system's one page of zeros, which the cache holds.
    return np.ones(size // 8, np.int64)
