"""The thread that computes, and how requests hear from it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from gguf_moe.errors import BusyError
from gguf_moe.generate import Continuation, Piece
from gguf_moe.model import Model
from gguf_moe.scheduler import Job, Scheduler


class Worker:
    """Steps a model's scheduler in a thread of its own. Use it as a context manager.

    n_waiting: requests that may wait while all sequences are in use.
    """

    def __init__(self, model: Model, n_waiting: int):
        self.model = model
        self._scheduling = model.scheduler(n_waiting)
        self._work = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="gguf-moe-worker", daemon=True)

    def __enter__(self) -> Worker:
        self.scheduler: Scheduler = self._scheduling.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing = True
        self._work.set()
        self._thread.join()
        self._scheduling.__exit__(None, None, None)

    def submit(self, *jobs: Job) -> None:
        """Queue jobs. Raises QueueFullError, or BusyError after the end."""
        if self._closing:
            raise BusyError("the server is stopping; ask again when it runs.")
        self.scheduler.submit(*jobs)
        self._work.set()

    def _run(self) -> None:
        while not self._closing:
            if not self.scheduler.step():
                self._work.wait()
                self._work.clear()


class Answers:
    """What some generations write, as it is written. Close it to stop them.

    limit_s: how long they may take. Must be made in a running event loop. Raises QueueFullError.
    """

    def __init__(self, worker: Worker, continuations: Sequence[Continuation], limit_s: float):
        self._limit_s = limit_s
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece | None, BaseException | None]] = asyncio.Queue()
        self._jobs = [
            Job(c, functools.partial(self._on_piece, i), functools.partial(self._on_end, i))
            for i, c in enumerate(continuations)
        ]
        worker.submit(*self._jobs)

    async def heard(self) -> AsyncGenerator[tuple[int, Piece | None]]:
        """The number of a generation and its next piece, or None at its end.

        Raises what ended one, and TimeoutError.
        """
        n_open = len(self._jobs)
        deadline = self._loop.time() + self._limit_s
        while n_open:
            try:
                async with asyncio.timeout_at(deadline):
                    index, piece, error = await self._queue.get()
            except TimeoutError:
                raise TimeoutError(f"the answer took longer than {self._limit_s:g} s.") from None
            if error:
                raise error
            n_open -= piece is None
            yield index, piece

    def close(self) -> None:
        """Stop what still runs. Twice is fine."""
        for job in self._jobs:
            self._worker.scheduler.cancel(job)

    def _on_piece(self, index: int, piece: Piece) -> None:
        self._tell(index, piece, None)

    def _on_end(self, index: int, error: BaseException | None) -> None:
        self._tell(index, None, error)

    def _tell(self, *what: Any) -> None:
        # The loop is closed when the server stops before a job has ended; then nobody listens.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, what)
