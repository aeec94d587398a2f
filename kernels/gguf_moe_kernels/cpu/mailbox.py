"""The CPU's side of the mailbox: it waits for what the GPU lacks in a layer, and answers."""

from __future__ import annotations

from numba import carray

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.memory import atomic_load, atomic_store, load_i32, load_i64, store_i64


@op(structs.AWAIT_POST)
def await_post(args, chunk, thread):
    """For a waiting row: 0 before the post, then how many rows to go on."""
    a = carray(args, 1)[0]
    sequence, step = atomic_load(a.sequence), load_i64(a.step, 0)
    if sequence == -step:
        return a.n_rows
    if sequence < step:
        return 0
    # Every thread stores the same number.
    store_i64(a.n_places, 0, load_i32(a.first, 4 * load_i64(a.n_used, 0)))
    return 1


@op(structs.ANSWER)
def answer(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk:
        return 0
    atomic_store(a.answer, load_i64(a.step, 0))
    return 1
