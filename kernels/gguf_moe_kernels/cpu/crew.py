"""The crew's loop: N threads walk one table of ops, claim chunks of each op, and meet at barriers.

Each op has a counter from which threads claim chunks until the op says that there is no such chunk. A row
whose barrier flag is set lets nobody pass before all have finished it. At a waiting row each thread waits for
somebody outside of the crew. They share structs.Control.

The calling thread (thread 0) takes part, but comes back to Python now and then so that signals are seen. Its
place in the table is its whole state, because chunks are claimed atomically: 2 * row while it claims chunks
of the row, 2 * row + 1 while it waits for the others at the row's barrier.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.memory import (
    atomic_add,
    atomic_load,
    atomic_store,
    load_i64,
    make_call,
    pause,
    store_i64,
)
from gguf_moe_kernels.structs import (
    ARRIVALS,
    COUNTER_SIZE,
    CREW_CLOSED,
    ROW_BARRIER,
    ROW_SIZE,
    ROW_WAITS,
    STEP_ABORTED,
    STEP_DONE,
    Control,
)

STEP, ABORT, FINISHED, CLOSING = (
    int(c) for c in (Control.STEP, Control.ABORT, Control.FINISHED, Control.CLOSING)
)
TABLE, N_ROWS, COUNTERS, N_THREADS = (
    int(c) for c in (Control.TABLE, Control.N_ROWS, Control.COUNTERS, Control.N_THREADS)
)
SCHED_YIELD, USLEEP, CLOCK_GETTIME = (
    int(c) for c in (Control.SCHED_YIELD, Control.USLEEP, Control.CLOCK_GETTIME)
)
CLOCK_MONOTONIC, TIMESPEC, WAITED = (
    int(c) for c in (Control.CLOCK_MONOTONIC, Control.TIMESPEC, Control.WAITED)
)

SPINS = 500
"""Looks with a pause between them (some 5-25 us) before a waiting thread offers its core to others."""
YIELDS = 2000
"""Looks with an offer between them (some 1-2 ms) before it sleeps between looks."""
SLEEPS = 100
"""Looks with a sleep between them (some 10 ms) before a worker parks: sampling may take so long."""
SLEEP_US = 50

FINISHED_ROW, OUT_OF_TIME, ABORTED = 1, 0, -1
"""Outcomes of a row. A waiting row's is how many rows to go on, so FINISHED_ROW means the next one."""

call_op = make_call(3)
call_clock = make_call(2)
call_sleep = make_call(1)
call_yield = make_call(0)


@njit
def wait_a_little(control, looks):
    """Spin at first, then yield, then sleep: more threads than cores must be slow, never stuck."""
    if looks < SPINS or not load_i64(control, SCHED_YIELD):
        pause()
    elif looks < SPINS + YIELDS or not load_i64(control, USLEEP):
        call_yield(load_i64(control, SCHED_YIELD))
    else:
        call_sleep(load_i64(control, USLEEP), SLEEP_US)


@njit
def clock(control):
    """Nanoseconds of the monotonic clock, or 0 where there is none. For thread 0 alone."""
    if not load_i64(control, CLOCK_GETTIME):
        return 0
    call_clock(load_i64(control, CLOCK_GETTIME), load_i64(control, CLOCK_MONOTONIC), control + TIMESPEC)
    return load_i64(control, TIMESPEC) * 1_000_000_000 + load_i64(control, TIMESPEC + 8)


@njit
def is_late(control, deadline):
    """Whether the clock has passed `deadline` (ns). Only thread 0 has one; for the others it is 0."""
    return deadline != 0 and clock(control) > deadline


@njit
def compute_chunks(control, row, thread, deadline):
    """Claim and compute chunks of a row until there are no more."""
    entry = load_i64(control, TABLE) + row * ROW_SIZE
    function, arguments = load_i64(entry, 0), load_i64(entry, 8)
    claimed = load_i64(control, COUNTERS) + row * COUNTER_SIZE
    while True:
        if atomic_load(control + ABORT):
            return ABORTED
        if is_late(control, deadline):
            return OUT_OF_TIME
        if not call_op(function, arguments, atomic_add(claimed, 1), thread):
            return FINISHED_ROW


@njit
def await_partner(control, row, thread, deadline):
    """Ask a waiting row until it says how many rows to go on. Thread 0 counts how long that takes."""
    entry = load_i64(control, TABLE) + row * ROW_SIZE
    function, arguments = load_i64(entry, 0), load_i64(entry, 8)
    n_rows = call_op(function, arguments, 0, thread)
    if n_rows:
        return n_rows
    since = 0 if thread else clock(control)
    outcome = ask_until_it_answers(control, function, arguments, thread, deadline)
    if not thread:
        store_i64(control, WAITED, load_i64(control, WAITED) + clock(control) - since)
    return outcome


@njit
def ask_until_it_answers(control, function, arguments, thread, deadline):
    """The loop of `await_partner`, with the same outcome."""
    looks = 0
    while True:
        if atomic_load(control + ABORT):
            return ABORTED
        n_rows = call_op(function, arguments, 0, thread)
        if n_rows:
            return n_rows
        if looks > SPINS and is_late(control, deadline):
            return OUT_OF_TIME
        wait_a_little(control, looks)
        looks += 1


@njit
def meet_others(control, row, deadline):
    """Wait until all threads have finished the row."""
    arrivals = load_i64(control, COUNTERS) + row * COUNTER_SIZE + ARRIVALS
    n_threads = load_i64(control, N_THREADS)
    looks = 0
    while atomic_load(arrivals) < n_threads:
        if atomic_load(control + ABORT):
            return ABORTED
        if looks > SPINS and is_late(control, deadline):
            return OUT_OF_TIME
        wait_a_little(control, looks)
        looks += 1
    return FINISHED_ROW


@njit
def walk(control, thread, place, deadline):
    """Go on from `place`; where thread 0 must go on later, or STEP_DONE or STEP_ABORTED."""
    n_rows = load_i64(control, N_ROWS)
    while place < 2 * n_rows:
        row = place >> 1
        entry = load_i64(control, TABLE) + row * ROW_SIZE
        waits = load_i64(entry, ROW_WAITS)
        if place & 1:
            outcome = meet_others(control, row, deadline)
        elif waits:
            outcome = await_partner(control, row, thread, deadline)
        else:
            outcome = compute_chunks(control, row, thread, deadline)
        if outcome == ABORTED:
            return STEP_ABORTED
        if outcome == OUT_OF_TIME:
            return place
        if waits:
            place += 2 * outcome
        elif place & 1:
            place += 1
        elif load_i64(entry, ROW_BARRIER):
            atomic_add(load_i64(control, COUNTERS) + row * COUNTER_SIZE + ARRIVALS, 1)
            place += 1
        else:
            place += 2
    return STEP_DONE


@kernel
def start(control):
    """Begin a step: the workers see its new number."""
    atomic_store(control + FINISHED, 0)
    atomic_store(control + ABORT, 0)
    return atomic_add(control + STEP, 1) + 1


@kernel
def lead(control, place, deadline):
    """Thread 0's part, until `deadline` (ns of the monotonic clock): see `walk`."""
    return walk(control, 0, place, deadline)


@kernel
def work(control, thread, seen):
    """A worker's part: all steps after number `seen`, until none has come for a while.

    Returns the last step seen, or CREW_CLOSED.
    """
    looks = 0
    while looks < SPINS + YIELDS + SLEEPS:
        step = atomic_load(control + STEP)
        if atomic_load(control + CLOSING):
            return CREW_CLOSED
        if step == seen:
            wait_a_little(control, looks)
            looks += 1
            continue
        walk(control, thread, 0, 0)
        atomic_add(control + FINISHED, 1)
        seen, looks = step, 0
    return seen


@kernel
def await_workers(control, deadline):
    """Wait until every worker has left the step; 0 if the deadline came first."""
    workers = load_i64(control, N_THREADS) - 1
    looks = 0
    while atomic_load(control + FINISHED) < workers:
        if looks > SPINS and is_late(control, deadline):
            return 0
        wait_a_little(control, looks)
        looks += 1
    return 1
