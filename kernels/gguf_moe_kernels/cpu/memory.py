"""Loads, stores and atomics on raw addresses, for use inside Numba functions.

A place in memory is `base` (an address, int64) plus `offset` (bytes). The two stay apart because LLVM
vectorizes a loop only when the address that runs is an offset from one that doesn't.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.half import f16_to_f32, f32_to_f16

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
LINE = 64
"""Bytes of a cache line."""


def pointer(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value, pointee: ir.Type) -> ir.Value:
    """The address base + offset as a pointer to `pointee`."""
    at = builder.gep(builder.inttoptr(base, I8.as_pointer()), [offset])
    return builder.bitcast(at, pointee.as_pointer())


def make_load(
    numba_type: types.Type,
    stored: ir.Type,
    convert: Callable[..., Any] | None = None,
    align: int = 1,
    is_constant: bool = False,
) -> Callable[..., Any]:
    """An intrinsic load(base, offset) that reads `stored` and gives `numba_type`.

    is_constant: nothing writes there while a kernel runs, so it need not be loaded again behind a store.
    """

    @intrinsic
    def load(typingctx, base, offset):
        def codegen(context, builder, signature, args):
            value = builder.load(pointer(builder, *args, stored))
            value.align = align
            if is_constant:
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
            return convert(builder, value) if convert else value

        return numba_type(types.int64, types.int64), codegen

    return load


def make_store(
    numba_type: types.Type, stored: ir.Type, convert: Callable[..., Any] | None = None, align: int = 1
) -> Callable[..., Any]:
    """An intrinsic store(base, offset, value) that writes `numba_type` as `stored`."""

    @intrinsic
    def store(typingctx, base, offset, value):
        def codegen(context, builder, signature, args):
            value = convert(builder, args[2]) if convert else args[2]
            builder.store(value, pointer(builder, *args[:2], stored)).align = align
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), codegen

    return store


load_u8 = make_load(types.int64, I8, lambda b, v: b.zext(v, I64))
load_i8 = make_load(types.int64, I8, lambda b, v: b.sext(v, I64))
load_u32 = make_load(types.int64, I32, lambda b, v: b.zext(v, I64))
load_i32 = make_load(types.int64, I32, lambda b, v: b.sext(v, I64))
load_i64 = make_load(types.int64, I64)
load_f16 = make_load(types.float32, F16, f16_to_f32)
load_bf16 = make_load(
    types.float32, I16, lambda b, v: b.bitcast(b.shl(b.zext(v, I32), ir.Constant(I32, 16)), F32)
)
load_f32 = make_load(types.float32, F32)

store_i8 = make_store(types.int64, I8, lambda b, v: b.trunc(v, I8))
store_i16 = make_store(types.int64, I16, lambda b, v: b.trunc(v, I16))
store_i32 = make_store(types.int64, I32, lambda b, v: b.trunc(v, I32))
store_i64 = make_store(types.int64, I64)
store_f16 = make_store(types.float32, F16, f32_to_f16)
store_f32 = make_store(types.float32, F32)


@intrinsic
def atomic_load(typingctx, address):
    """Read an int64 that other threads write (acquire)."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    """Write an int64 that other threads read (release)."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, value):
    """Add to a shared int64 and give what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


def make_call(n_args: int) -> Callable[..., Any]:
    """An intrinsic call(function, a0, a1, ...) of the C function int64 (*)(int64, ...) at an address."""
    numbers = ", ".join(f"a{i}" for i in range(n_args))

    def codegen(context, builder, signature, args):
        c_type = ir.FunctionType(I64, [I64] * n_args)
        return builder.call(builder.inttoptr(args[0], c_type.as_pointer()), args[1:])

    signature = types.int64(*[types.int64] * (n_args + 1))
    # An intrinsic's arity is that of its Python function, so the function is made with the right one.
    namespace: dict[str, Any] = {"signature": signature, "codegen": codegen}
    exec(f"def call(typingctx, function, {numbers}): return signature, codegen", namespace)
    return intrinsic(namespace["call"])


@intrinsic
def pause(typingctx):
    """Tell the core that this is a waiting loop; a no-op where there is no such instruction."""

    def codegen(context, builder, signature, args):
        if "x86" in builder.module.triple:
            c_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, c_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


def make_stack(n_bytes: int) -> Callable[..., Any]:
    """An intrinsic: the address of so many bytes on the caller's stack, on a cache line; not cleared."""

    @intrinsic
    def stack(typingctx):
        def codegen(context, builder, signature, args):
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(I8, n_bytes))
            memory.align = 64
            return builder.ptrtoint(memory, I64)

        return types.int64(), codegen

    return stack


def lane_addresses(builder: ir.IRBuilder, places: ir.Value, apart: ir.Value) -> list[ir.Value]:
    """16 addresses: number 4i + j is the i-th of the four int64 at `places`, plus j * apart."""
    starts = [builder.load(pointer(builder, places, ir.Constant(I64, 8 * i), I64)) for i in range(4)]
    steps = [builder.mul(apart, ir.Constant(I64, j)) for j in range(4)]
    return [builder.add(start, step) for start in starts for step in steps]


def make_gather(bits: int, vector: types.Type) -> Callable[..., Any]:
    """An intrinsic gather(places, apart, offset) of unsigned integers of so many bits into 16 int32 lanes.

    Each is read `offset` bytes behind its address (see `lane_addresses`).
    """
    element = ir.IntType(bits)

    @intrinsic
    def gather(typingctx, places, apart, offset):
        def codegen(context, builder, signature, args):
            values: ir.Value = ir.Constant(ir.VectorType(element, 16), ir.Undefined)
            for lane, address in enumerate(lane_addresses(builder, *args[:2])):
                value = builder.load(pointer(builder, address, args[2], element))
                value.align = 1
                values = builder.insert_element(values, value, ir.Constant(I32, lane))
            return builder.zext(values, ir.VectorType(I32, 16)) if bits < 32 else values

        return vector(types.int64, types.int64, types.int64), codegen

    return gather


@intrinsic
def copy_bytes(typingctx, to, source, n):
    """n bytes from one address to another; they must not overlap."""

    def codegen(context, builder, signature, args):
        to, source = (builder.inttoptr(a, I8.as_pointer()) for a in args[:2])
        cgutils.raw_memcpy(builder, to, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def fill_zero(typingctx, to, n):
    """n zero bytes at an address."""

    def codegen(context, builder, signature, args):
        cgutils.memset(builder, builder.inttoptr(args[0], I8.as_pointer()), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _make_prefetch(locality: int) -> Callable[..., Any]:
    """An intrinsic prefetch(base, offset). locality: LLVM's 3 means all caches, 2 all but the first."""

    @intrinsic
    def prefetch(typingctx, base, offset):
        def codegen(context, builder, signature, args):
            byte = I8.as_pointer()
            c_type = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
            function = cgutils.get_or_insert_function(builder.module, c_type, "llvm.prefetch.p0")
            read_data = (ir.Constant(I32, 0), ir.Constant(I32, locality), ir.Constant(I32, 1))
            builder.call(function, [pointer(builder, *args, I8), *read_data])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return prefetch


prefetch, prefetch_later = _make_prefetch(3), _make_prefetch(2)
"""Ask for the cache line at a place that is read soon; or later, when the first cache holds others."""


@intrinsic
def opaque(typingctx, address):
    """The same address, unknown to the compiler: after `keep_order` what was stored there is loaded anew."""

    def codegen(context, builder, signature, args):
        c_type = ir.FunctionType(I64, [I64])
        return builder.asm(c_type, "", "=r,0", args, side_effect=False)

    return types.int64(types.int64), codegen


@intrinsic
def keep_order(typingctx):
    """No access to memory moves across this when the code is compiled; the processor does nothing."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst", targetscope="singlethread")
        return context.get_dummy_value()

    return types.void(), codegen


def _make_ask_for(prefetch: Callable[..., Any]) -> Callable[..., Any]:
    @njit
    def ask_for(at, n_bytes):
        for offset in range(0, n_bytes, LINE):
            prefetch(at, offset)
        keep_order()

    return ask_for


ask_for, ask_for_later = _make_ask_for(prefetch), _make_ask_for(prefetch_later)
"""ask_for(at, n_bytes): ask for all cache lines of so many bytes, here and not somewhere before or after."""
