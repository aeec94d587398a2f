"""An op around another one that notes when each thread was in it (for scripts/decode_times.py)."""

from __future__ import annotations

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.memory import I64, load_i64, make_call, store_i64

FIRST, LAST, BUSY = 0, 8, 16
"""Of a thread's three int64: when it came first, when it left last, and how long it was inside in all."""
TIMES_SIZE = 64
"""Bytes of a thread's times: a cache line, so that threads don't disturb each other."""

call_op = make_call(3)


@intrinsic
def ticks(typingctx):
    """The processor's counter of time, the same on all cores; how long a tick is must be measured."""

    def codegen(context, builder, signature, args):
        c_type = ir.FunctionType(I64, [])
        function = cgutils.get_or_insert_function(builder.module, c_type, "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), codegen


@op(structs.STOPWATCH)
def stopwatch(args, chunk, thread):
    a = carray(args, 1)[0]
    times = a.times + thread * TIMES_SIZE
    before = ticks()
    result = call_op(a.function, a.arguments, chunk, thread)
    after = ticks()
    if not load_i64(times, FIRST):
        store_i64(times, FIRST, before)
    store_i64(times, LAST, after)
    store_i64(times, BUSY, load_i64(times, BUSY) + after - before)
    return result
