"""Reads memory as fast as a core can, to measure how fast that is. The sum of what was read keeps it real.

Four streams side by side, each asked for 1 KiB ahead, were the fastest of the forms tried on two threads: one
stream or four, and 0 to 16 KiB ahead.
"""

from __future__ import annotations

from numba import njit

from gguf_moe_kernels.cpu.compile import kernel
from gguf_moe_kernels.cpu.memory import LINE, atomic_add, load_i64, make_stack, prefetch
from gguf_moe_kernels.cpu.vector import load_i32x16, store_i32x16, zero_i32x16
from gguf_moe_kernels.structs import READ_CHUNK

STREAM = READ_CHUNK // 4
AHEAD = 1024

stack_vector = make_stack(LINE)


@njit
def read_chunk(base, acc):
    """Add up READ_CHUNK bytes, as four independent sums."""
    a, b, c, d = acc, zero_i32x16(), zero_i32x16(), zero_i32x16()
    for i in range(0, STREAM, LINE):
        for stream in range(4):
            prefetch(base, stream * STREAM + i + AHEAD)
        a = a + load_i32x16(base, i)
        b = b + load_i32x16(base, STREAM + i)
        c = c + load_i32x16(base, 2 * STREAM + i)
        d = d + load_i32x16(base, 3 * STREAM + i)
    return a + b + c + d


@kernel
def read(buffer, buffer_size, end, claimed):
    """Claim and read chunks until those before `end` are claimed, round and round in the buffer.

    buffer_size and end are bytes, multiples of READ_CHUNK. claimed: the address of an int64 that all threads
    share, so that they end together; it begins where the first chunk does. Returns a number that depends on
    all bytes read.
    """
    acc, out = zero_i32x16(), stack_vector()
    start = atomic_add(claimed, READ_CHUNK)
    while start < end:
        acc = read_chunk(buffer + start % buffer_size, acc)
        start = atomic_add(claimed, READ_CHUNK)
    store_i32x16(out, 0, acc)
    result = 0
    for i in range(0, LINE, 8):
        result ^= load_i64(out, i)
    return result
