"""Several generations at once: each step takes the next token of all, and pieces of new prompts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gguf_moe.errors import OptionError, QueueFullError
from gguf_moe.generate import Continuation, Piece, common_prefix
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.sequence import CachedSequence, Part

PROMPT_TOKENS_BESIDE = 64
"""Most tokens of prompts in a step in which others decode: they wait for it."""

OnPiece = Callable[[Piece], None]
OnEnd = Callable[[BaseException | None], None]


@dataclass(eq=False, slots=True)
class Job:
    """One generation. The thread that steps calls on_piece, at the end on_end with what failed or None."""

    continuation: Continuation
    on_piece: OnPiece
    on_end: OnEnd
    is_cancelled: bool = False
    sequence: CachedSequence | None = None
    n_reused: int = 0
    is_decoding: bool = False

    @property
    def prompt(self) -> list[int]:
        """The prompt's token ids."""
        return self.continuation.result.prompt_token_ids


@dataclass(slots=True)
class Counts:
    """What a scheduler has done so far."""

    n_steps: int = 0
    n_jobs: int = 0
    n_prompt_tokens: int = 0
    """Without those that were reused."""
    n_reused_tokens: int = 0
    n_generated_tokens: int = 0
    step_s: float = 0.0
    """Seconds in steps."""


class Scheduler:
    """Generations that share one context, each with the tokens that it has alone.

    One thread calls `step`; any thread may submit and cancel. n_waiting: jobs that may wait for a sequence.
    """

    def __init__(self, context: Context, n_waiting: int):
        self.counts = Counts()
        self.use = context.watch_experts()
        self._context = context
        self._n_waiting = n_waiting
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._lock = threading.Lock()

    @property
    def n_active(self) -> int:
        """Jobs that have a sequence."""
        return len(self._active)

    @property
    def n_waiting(self) -> int:
        """Jobs that wait for a sequence."""
        return len(self._waiting)

    def submit(self, *jobs: Job) -> None:
        """Queue jobs, all or none.

        Raises QueueFullError if more would wait than may, OptionError if they never could.
        """
        most = len(self._context.sequences) + self._n_waiting
        if len(jobs) > most:
            raise OptionError(
                f"{len(jobs)} answers are asked for at once, but at most {most} can be taken; ask for fewer."
            )
        with self._lock:
            n_free = len(self._context.sequences) - len(self._active)
            if len(self._waiting) + len(jobs) > n_free + self._n_waiting:
                raise QueueFullError(
                    f"{len(self._active)} requests are being answered and {len(self._waiting)} wait, "
                    "which is the limit; try again later."
                )
            self._waiting.extend(jobs)
            self.counts.n_jobs += len(jobs)

    def cancel(self, job: Job) -> None:
        """End a job at the next step, without an error. Twice, or after its end, is fine."""
        job.is_cancelled = True

    def step(self) -> bool:
        """Compute one step; False if there was nothing to do.

        If it fails, all jobs that took part end with the error.
        """
        self._admit()
        parts = self._parts()
        if not parts:
            return False
        start = time.perf_counter()
        try:
            logits = self._context.step(list(parts.values()))
        except Exception as error:
            for job in parts:
                self._end(job, error)
            return True
        for (job, part), rows in zip(parts.items(), logits, strict=True):
            if not job.is_decoding:
                self.counts.n_prompt_tokens += len(part.tokens)
            if part.n_outputs:
                self._take(job, part.sequence, rows[0])
        self.counts.n_steps += 1
        self.counts.step_s += time.perf_counter() - start
        return True

    def fail_all(self, error: BaseException) -> None:
        """End all jobs with an error."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for job in (*self._active, *waiting):
            self._end(job, error)

    def _admit(self) -> None:
        """End what was cancelled, and give free sequences to those who wait."""
        with self._lock:
            jobs = (*self._active, *self._waiting)
            self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
        for job in jobs:
            if job.is_cancelled:
                self._end(job, None)
        while self._waiting:
            taken = {id(job.sequence) for job in self._active}
            free = [s for s in self._context.sequences if id(s) not in taken]
            if not free:
                return
            with self._lock:
                job = self._waiting.popleft()
                self._active.append(job)
            self._place(job, free)

    def _place(self, job: Job, free: list[CachedSequence]) -> None:
        """Give the job the sequence that has most of its prompt, or a copy of what another one has."""

        def shared(sequence: CachedSequence) -> int:
            return common_prefix(sequence.tokens, job.prompt)

        job.sequence = target = max(free, key=lambda s: (shared(s), -len(s.tokens)))
        source = max(self._context.sequences, key=shared)
        if shared(source) > shared(target):
            job.n_reused = self._context.state.copy_prefix(source, target, shared(source))
        else:
            job.n_reused = target.truncate(shared(target))
        self.counts.n_reused_tokens += job.n_reused

    def _parts(self) -> dict[Job, Part]:
        """The next token of those that decode, then pieces of prompts, as many as fit into a step."""
        parts: dict[Job, Part] = {}
        room = self._context.n_batch
        decoding = [job for job in self._active if job.is_decoding][:room]
        for job in decoding:
            assert job.sequence
            parts[job] = Part(job.sequence, job.continuation.result.token_ids[-1:], 1)
        room = min(room - len(decoding), PROMPT_TOKENS_BESIDE if decoding else room)
        for job in self._active:
            if job.is_decoding or not room:
                continue
            assert job.sequence
            rest = job.prompt[len(job.sequence.tokens) :]
            n, keeps_states = job.sequence.next_piece(len(rest), room)
            parts[job] = Part(job.sequence, rest[:n], int(n == len(rest)), keeps_states)
            room -= n
        return parts

    def _take(self, job: Job, sequence: CachedSequence, logits: np.ndarray) -> None:
        """Let a job choose its next token."""
        if not job.is_decoding:
            job.is_decoding = True
            job.continuation.begin(job.n_reused)
        result = job.continuation.result
        try:
            if not result.finish_reason:
                n_before = len(result.token_ids)
                is_full = len(sequence.tokens) == self._context.n_ctx
                for piece in job.continuation.take(logits, sequence.tokens, is_full):
                    job.on_piece(piece)
                self.counts.n_generated_tokens += len(result.token_ids) - n_before
        except Exception as error:
            self._end(job, error)
            return
        if result.finish_reason:
            self._end(job, None)

    def _end(self, job: Job, error: BaseException | None) -> None:
        with self._lock:
            if job in self._active:
                self._active.remove(job)
        job.on_end(error)
