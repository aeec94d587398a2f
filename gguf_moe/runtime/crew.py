"""The crew: threads made at load, parked between steps, joined at close. They walk a program together.

The loop itself is machine code (gguf_moe_kernels/cpu/crew.py) and runs without the interpreter lock. The
caller is thread 0. Every SLICE_NS it comes back to Python, so that Ctrl-C and other signals are seen.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from gguf_moe.errors import BusyError
from gguf_moe.runtime.program import Program, Row
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.structs import CREW_CLOSED, Control

KERNELS = ("crew.start", "crew.lead", "crew.work", "crew.await_workers")
SLICE_NS = 50_000_000
Watch = Callable[[float], None]
LEAVE_LIMIT_NS = 30_000_000_000
"""How long threads may take to leave an aborted step: many times the longest chunk."""


def kernels_of(rows: Sequence[Row]) -> list[str]:
    """All kernels that a program of these rows and the crew need, each once."""
    return list(dict.fromkeys([*KERNELS, *(kernel for row in rows for kernel in row.kernels())]))


class Crew:
    """`n_threads` threads, the caller's included. Not for use by two threads at once."""

    def __init__(self, n_threads: int, library: KernelLibrary):
        self.n_threads = n_threads
        self._shared = _Shared(n_threads, library)
        self._threads = [
            threading.Thread(target=_work, args=(self._shared, i), name=f"gguf-moe-{i}", daemon=True)
            for i in range(1, n_threads)
        ]
        self._process = os.getpid()
        self._close = weakref.finalize(self, _close, self._shared, self._threads)
        for thread in self._threads:
            thread.start()

    def run(self, program: Program, watch: Watch | None = None) -> None:
        """Run one step. Raises what arrives meanwhile (KeyboardInterrupt); then nothing of the step counts.

        watch(seconds) is called again and again, after so many seconds each; what it raises ends the step.
        Raises BusyError in a child of fork(), where the threads do not exist.
        """
        if os.getpid() != self._process:
            raise BusyError("the model was loaded before fork(); load it in the process that uses it.")
        shared = self._shared
        if not shared.await_workers(_deadline(LEAVE_LIMIT_NS)):
            raise BusyError("a thread of the model does not come back from an earlier step; load it again.")
        shared.set_program(program)
        try:
            with shared.wake:
                shared.start()
                shared.wake.notify_all()
            place = 0
            while place >= 0:  # STEP_DONE and STEP_ABORTED are negative
                place = shared.lead(place, _deadline(SLICE_NS))
                self._check_threads()
                if watch and place >= 0:
                    watch(SLICE_NS / 1e9)
            while not shared.await_workers(_deadline(SLICE_NS)):
                self._check_threads()
        except BaseException:
            shared[Control.ABORT] = 1
            shared.await_workers(_deadline(LEAVE_LIMIT_NS))
            raise

    @property
    def waited_s(self) -> float:
        """Seconds of all steps that the caller's thread waited for a partner."""
        return self._shared[Control.WAITED] / 1e9

    def close(self) -> None:
        """Join the threads. The crew can't be used afterwards."""
        self._close()

    def _check_threads(self) -> None:
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a worker thread of the model has died")


class _Shared:
    """The control block and the kernels that work on it. Worker threads hold this, never the crew."""

    def __init__(self, n_threads: int, library: KernelLibrary):
        self._library = library
        self._program: Program | None = None
        # Aligned to a cache line by hand: numpy promises less.
        self._memory = np.zeros(Control.SIZE // 8 + 8, np.int64)
        address = self._memory.__array_interface__["data"][0]
        self._control = self._memory[(-address % 64) // 8 :]
        self.address = address + -address % 64
        self.wake = threading.Condition()
        self._start = self._function("crew.start", 1)
        self._lead = self._function("crew.lead", 3)
        self._work = self._function("crew.work", 3)
        self._await_workers = self._function("crew.await_workers", 2)
        self[Control.N_THREADS] = n_threads
        self[Control.FINISHED] = n_threads - 1
        if sys.platform != "win32":
            self._set_c_functions()

    def __getitem__(self, field: Control) -> int:
        return int(self._control[field // 8])

    def __setitem__(self, field: Control, value: int) -> None:
        self._control[field // 8] = value

    def set_program(self, program: Program) -> None:
        self._program = program
        program.counters[:] = 0
        self[Control.TABLE] = program.table.__array_interface__["data"][0]
        self[Control.N_ROWS] = len(program.table)
        self[Control.COUNTERS] = program.counters.__array_interface__["data"][0]

    def start(self) -> None:
        self._start(self.address)

    def lead(self, place: int, deadline_ns: int) -> int:
        return self._lead(self.address, place, deadline_ns)

    def work(self, thread: int, seen: int) -> int:
        return self._work(self.address, thread, seen)

    def await_workers(self, deadline_ns: int) -> int:
        return self._await_workers(self.address, deadline_ns)

    def _function(self, kernel: str, n_args: int) -> Callable[..., int]:
        c_type = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * n_args)
        return c_type(self._library.address(kernel))

    def _set_c_functions(self) -> None:
        libc = ctypes.CDLL(None)
        fields = (
            (Control.SCHED_YIELD, libc.sched_yield),
            (Control.USLEEP, libc.usleep),
            (Control.CLOCK_GETTIME, libc.clock_gettime),
        )
        for field, function in fields:
            self[field] = ctypes.cast(function, ctypes.c_void_p).value or 0
        self[Control.CLOCK_MONOTONIC] = time.CLOCK_MONOTONIC


def _deadline(nanoseconds: int) -> int:
    """A time on the clock that the kernels read."""
    now = time.monotonic_ns() if sys.platform == "win32" else time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return now + nanoseconds


def _work(shared: _Shared, thread: int) -> None:
    """A worker's life: steps without the interpreter, parked in Python when none has come for a while."""
    seen = 0
    while True:
        seen = shared.work(thread, seen)
        if seen == CREW_CLOSED:
            return
        with shared.wake:
            while shared[Control.STEP] == seen and not shared[Control.CLOSING]:
                shared.wake.wait()


def _close(shared: _Shared, threads: list[threading.Thread]) -> None:
    shared[Control.ABORT] = 1
    shared[Control.CLOSING] = 1
    with shared.wake:
        shared.wake.notify_all()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(LEAVE_LIMIT_NS / 1e9)
