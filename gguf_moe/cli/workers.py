"""Compiling in several processes at once: Numba compiles under one lock per process.

They are processes of their own, not forks, and each is asked for one kernel at a time. What they leave
undone, for whatever reason, is compiled in this process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from gguf_moe.runtime import machine

logger = logging.getLogger(__name__)

# -P: nothing is imported from the directory that the user happens to be in.
COMMAND = (sys.executable, "-P", "-m", "gguf_moe_kernels.cpu.worker")
Worker = subprocess.Popen[str]


def fill_cache(
    directory: Path, names: list[str], progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Compile these kernels into a cache directory, in as many processes as there are cores.

    progress(name, done, total) is called at the start and after each kernel. Leaves it to the caller if there
    is one core only.
    """
    n_workers = min(machine.default_threads(), len(names))
    if n_workers < 2:
        return
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in _biggest_first(names):
        waiting.put(name)
    results: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with _workers(directory, n_workers) as workers:
        for worker in workers:
            threading.Thread(target=_feed, args=(worker, waiting, results), daemon=True).start()
        n_done, n_feeding = 0, len(workers)
        if progress:
            progress(names[0], 0, len(names))
        while n_feeding:
            done = results.get()
            if done is None:
                n_feeding -= 1
                continue
            n_done += 1
            if progress:
                progress(done, n_done, len(names))
    if n_done < len(names):
        logger.warning("a process that compiles kernels has ended too early; the rest is compiled without it")


def _biggest_first(names: list[str]) -> list[str]:
    """A big kernel at the end would be waited for by all; tiles are the big ones."""
    return sorted(names, key=lambda name: not name.endswith(".tile"))


@contextlib.contextmanager
def _workers(directory: Path, n: int) -> Iterator[list[Worker]]:
    """As many processes as could be started. At the end, or when it is interrupted, they are killed."""
    workers: list[Worker] = []
    try:
        with contextlib.suppress(OSError):
            for _ in range(n):
                workers.append(_start(directory))
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()


def _start(directory: Path) -> Worker:
    return subprocess.Popen(
        [*COMMAND, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        # Ctrl-C is for this process, which ends the others; they would show tracebacks.
        process_group=0 if os.name == "posix" else None,
    )


def _feed(worker: Worker, waiting: queue.SimpleQueue[str], results: queue.SimpleQueue[str | None]) -> None:
    """Ask a worker for one kernel after the other; the names of the finished ones to `results`, then None."""
    assert worker.stdin
    assert worker.stdout
    with contextlib.suppress(queue.Empty, OSError), worker.stdin, worker.stdout:
        while True:
            name = waiting.get_nowait()
            worker.stdin.write(f"{name}\n")
            worker.stdin.flush()
            if worker.stdout.readline() != f"{name}\n":
                break
            results.put(name)
    results.put(None)
