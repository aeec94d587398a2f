"""A device in main memory: its streams are threads, and the emulator runs its kernels."""

from __future__ import annotations

import ctypes
import queue
import threading
import time

import numpy as np

from gguf_moe.errors import OutOfMemoryError
from gguf_moe_kernels.cuda.launch import launch_of


class Stream(threading.Thread):
    """Jobs one after the other. The first that fails stops all later ones."""

    def __init__(self):
        super().__init__(daemon=True)
        self.jobs = queue.SimpleQueue()
        self.queued = self.finished = 0
        self.error = None
        self.captured = None
        """The jobs of a graph, and the thread that makes it."""
        self.start()

    def put(self, job):
        if self.captured is not None and self.captured[1] == threading.get_ident():
            self.captured[0].append(job)
        else:
            self.queued += 1
            self.jobs.put(job)

    def run(self):
        while (job := self.jobs.get()) is not None:
            try:
                if self.error is None:
                    job()
            except Exception as e:
                self.error = e
            self.finished += 1


class EmulatedDevice:
    """Has gguf_moe.runtime.gpu.device.Device's methods. `library` is tests/kernels/cuda's EmulatedLibrary.

    `total` bytes of memory can be had. `hold` keeps copies of the given stream back until it is cleared.
    """

    def __init__(self, library, total=1 << 30):
        self._library = library
        self._total = total
        self._arrays = {}
        self._pinned = []
        self._streams = []
        self.launched = []
        self.copied = []
        """(source, bytes) of each copy."""
        self.registers = True
        """Whether main memory can be registered."""
        self.n_allocated = 0
        self.refuses = lambda number, nbytes: False
        """Whether an allocation, counted from 1, of so many bytes fails."""

    def prepare(self, kernels, progress):
        self._library.prepare(kernels)
        return 0

    def allocate(self, nbytes):
        self.n_allocated += 1
        if self.refuses(self.n_allocated, nbytes):
            raise OutOfMemoryError(f"the GPU cannot give {nbytes} bytes; use less (--vram).")
        return self._zeros(nbytes)

    def _zeros(self, nbytes):
        array = np.zeros(nbytes + 256, np.uint8)
        address = array.__array_interface__["data"][0]
        address += -address % 256
        self._arrays[address] = array
        return address

    def free(self, address):
        del self._arrays[address]

    def pinned(self, nbytes):
        address = self._zeros(nbytes)
        array = self._arrays.pop(address)
        start = address - array.__array_interface__["data"][0]
        return array[start : start + nbytes]

    def unpin(self, array):
        pass

    def register(self, address, nbytes):
        return self.registers

    def unregister(self, address):
        pass

    def memory(self):
        used = sum(array.nbytes for array in self._arrays.values())
        return self._total - used, self._total

    def stream(self):
        self._streams.append(Stream())
        return self._streams[-1]

    def copy(self, stream, target, source, nbytes):
        self.copied.append((source, nbytes))
        stream.put(lambda: ctypes.memmove(target, source, nbytes))

    def launch(self, stream, kernel, arguments, rows):
        size = launch_of(kernel, arguments, rows)
        self.launched.append(kernel)
        stream.put(lambda: self._library.launch(kernel, size.grid, size.block, size.shared, arguments))

    def wait_for(self, stream, event):
        """Nothing to do in a graph: its jobs run in the order in which they were put."""
        if stream.captured is None:
            stream.put(lambda: self._await(event))

    def _await(self, event):
        while not self.is_done(event):
            time.sleep(1e-4)

    def capture(self, stream, queue):
        jobs = []
        for other in self._streams:
            other.captured = jobs, threading.get_ident()
        try:
            queue()
            return jobs
        finally:
            for other in self._streams:
                other.captured = None

    def replay(self, stream, graph):
        for job in graph:
            stream.put(job)

    def event(self, stream):
        return stream, stream.queued

    def is_done(self, event):
        stream, n = event
        self._check(stream)
        return stream.finished >= n

    def is_idle(self, stream):
        self._check(stream)
        return stream.finished >= stream.queued

    def close(self):
        for stream in self._streams:
            stream.jobs.put(None)
            stream.join()
        self._arrays.clear()

    def _check(self, stream):
        if stream.error is not None:
            raise stream.error
