"""How experts' weights come from the file in main memory to the device, beside the steps that run."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from gguf_moe.runtime.gpu.device import Device, wait_until

PIECE_SIZE = 4 << 20
N_PIECES = 4
"""Pinned memory of so many bytes and pieces, so that one is filled while others are on their way."""


class Copy(NamedTuple):
    """Bytes from an address in main memory to one on the device."""

    target: int
    source: int
    nbytes: int


class Uploads(Protocol):
    """Brings bytes in the order in which they were asked for. One thread uses it."""

    def start(self, copies: Sequence[Copy]) -> Any:
        """Begin, without waiting; a mark for `is_done`."""

    def is_done(self, mark: Any) -> bool:
        """Whether these have arrived. Raises DeviceError if they never will."""

    def close(self) -> None:
        """Join what works beside. Nothing is brought any more."""


class DirectUploads:
    """The device reads the file where it lies; it must be registered, or the caller waits for the driver."""

    def __init__(self, device: Device):
        self._device = device
        self._stream = device.stream()

    def start(self, copies: Sequence[Copy]) -> Any:
        for copy in copies:
            self._device.copy(self._stream, *copy)
        return self._device.event(self._stream)

    def is_done(self, mark: Any) -> bool:
        return self._device.is_done(mark)

    def close(self) -> None:
        """Nothing works beside but the device."""


class _Job:
    def __init__(self, copies: Sequence[Copy]):
        self.copies = copies
        self.event: Any = None
        self.error: Exception | None = None


class StagedUploads:
    """For a file that cannot be registered: a thread copies it to pinned memory, a piece at a time.

    The device reads from there. So nobody who runs steps waits, and little memory has to be pinned.
    """

    def __init__(self, device: Device):
        self._device = device
        self._stream = device.stream()
        self._memory = device.pinned(N_PIECES * PIECE_SIZE)
        self._sent: list[Any] = [None] * N_PIECES
        """For each piece the event behind its last copy."""
        self._turn = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, copies: Sequence[Copy]) -> _Job:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gguf-moe uploads", daemon=True)
            self._thread.start()
        job = _Job(copies)
        self._jobs.put(job)
        return job

    def is_done(self, mark: _Job) -> bool:
        if mark.error:
            raise mark.error
        return mark.event is not None and self._device.is_done(mark.event)

    def close(self) -> None:
        self._closing = True
        self._jobs.put(None)
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            try:
                for copy in job.copies:
                    for start in range(0, copy.nbytes, PIECE_SIZE):
                        n = min(PIECE_SIZE, copy.nbytes - start)
                        self._send(copy.target + start, copy.source + start, n)
                job.event = self._device.event(self._stream)
            except Exception as e:
                job.error = e

    def _send(self, target: int, source: int, nbytes: int) -> None:
        turn, self._turn = self._turn, (self._turn + 1) % N_PIECES
        sent = self._sent[turn]
        if sent is not None:
            wait_until(lambda: self._closing or self._device.is_done(sent), "an upload")
        piece = self._memory.ctypes.data + turn * PIECE_SIZE
        ctypes.memmove(piece, source, nbytes)
        self._device.copy(self._stream, target, piece, nbytes)
        self._sent[turn] = self._device.event(self._stream)
