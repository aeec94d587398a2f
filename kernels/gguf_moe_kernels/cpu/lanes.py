"""What 16 lanes do across each other: sums, turns, and loads that bring numbers to their lanes.

A *quarter* is four lanes: 4i .. 4i + 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gguf_moe_kernels.cpu.memory import F32, I32, I64, lane_addresses, pointer
from gguf_moe_kernels.cpu.simd import join_all
from gguf_moe_kernels.cpu.vector import Vector, f32x4, f32x16, i32x16, i32x64, pick, splat


def _add_of_fours(
    builder: ir.IRBuilder, v: ir.Value, w: ir.Value, first: list[int], second: list[int]
) -> ir.Value:
    """Of each four lanes of v and w the lanes `first` plus the lanes `second`; 16 and up are w's."""
    both = (pick(builder, v, [i + j for i in range(0, 16, 4) for j in lanes], w) for lanes in (first, second))
    return builder.add(*both)


@intrinsic
def sum_fours(typingctx, a, b, c, d):
    """Lane 4i + j of the result: the sum of lanes 4i .. 4i + 3 of the j-th vector."""

    def codegen(context, builder, sig, args):
        a, b, c, d = args
        ab, cd = (_add_of_fours(builder, *two, [0, 16, 1, 17], [2, 18, 3, 19]) for two in ((a, b), (c, d)))
        return _add_of_fours(builder, ab, cd, [0, 1, 16, 17], [2, 3, 18, 19])

    return i32x16(i32x16, i32x16, i32x16, i32x16), codegen


@intrinsic
def fold_two(typingctx, a, b):
    """In each four lanes of the result a's lanes 0 + 2 and 1 + 3, then those of b."""

    def codegen(context, builder, sig, args):
        return _add_of_fours(builder, *args, [0, 1, 16, 17], [2, 3, 18, 19])

    return i32x16(i32x16, i32x16), codegen


@intrinsic
def sum_twos(typingctx, a, b):
    """In each four lanes of the result a's lanes 0 + 1 and 2 + 3, then those of b."""

    def codegen(context, builder, sig, args):
        return _add_of_fours(builder, *args, [0, 2, 16, 18], [1, 3, 17, 19])

    return i32x16(i32x16, i32x16), codegen


def _add_quarters(builder: ir.IRBuilder, v: ir.Value, w: ir.Value) -> ir.Value:
    """Quarters (4 lanes) 0 + 1 and 2 + 3 of v, then those of w."""
    even, odd = ([q + i for q in range(start, 32, 8) for i in range(4)] for start in (0, 4))
    return builder.add(pick(builder, v, even, w), pick(builder, v, odd, w))


@intrinsic
def sum_quarters(typingctx, a, b, c, d):
    """Quarter j (lanes 4j .. 4j + 3) of the result: the sum of the four quarters of the j-th vector."""

    def codegen(context, builder, sig, args):
        a, b, c, d = args
        return _add_quarters(builder, _add_quarters(builder, a, b), _add_quarters(builder, c, d))

    return i32x16(i32x16, i32x16, i32x16, i32x16), codegen


@intrinsic
def sum_halves(typingctx, a, b):
    """Quarters of the result: 0 + 1 and 2 + 3 of a, then of b."""
    return i32x16(i32x16, i32x16), lambda context, builder, sig, args: _add_quarters(builder, *args)


def _make_every_second(first: int, doc: str) -> Callable[..., Any]:
    def every_second(typingctx, a, b):
        def codegen(context, builder, sig, args):
            lanes = [q + i for q in range(4 * first, 32, 8) for i in range(4)]
            return pick(builder, args[0], lanes, args[1])

        return i32x16(i32x16, i32x16), codegen

    every_second.__doc__ = doc
    return intrinsic(every_second)


even_quarters = _make_every_second(0, "Quarters of the result: 0 and 2 of a, then of b.")
odd_quarters = _make_every_second(1, "Quarters of the result: 1 and 3 of a, then of b.")


def _make_load_repeated(element: ir.Type, vector: Vector, doc: str) -> Callable[..., Any]:
    def load(typingctx, base, offset):
        def codegen(context, builder, sig, args):
            four = builder.load(pointer(builder, *args, ir.VectorType(element, 4)))
            four.align = 1
            return pick(builder, four, [i // 4 for i in range(16)])

        return vector(types.int64, types.int64), codegen

    load.__doc__ = doc
    return intrinsic(load)


load_repeated_i32 = _make_load_repeated(I32, i32x16, "Four int32, each in all lanes of a quarter.")
load_repeated_f32 = _make_load_repeated(F32, f32x16, "Four float32, each in all lanes of a quarter.")


def _make_load_quarters(element: ir.Type, vector: Vector, doc: str) -> Callable[..., Any]:
    def load(typingctx, base0, base1, base2, base3, offset):
        def codegen(context, builder, sig, args):
            quarters = []
            for base in args[:4]:
                quarters.append(builder.load(pointer(builder, base, args[4], ir.VectorType(element, 4))))
                quarters[-1].align = 1
            return join_all(builder, quarters)

        return vector(*[types.int64] * 5), codegen

    load.__doc__ = doc
    return intrinsic(load)


load_quarters_i32 = _make_load_quarters(I32, i32x16, "Four int32 at `offset` of each of four places.")
load_quarters_f32 = _make_load_quarters(F32, f32x16, "Four float32 at `offset` of each of four places.")


def _make_quarter(q: int) -> Callable[..., Any]:
    def quarter(typingctx, v):
        def codegen(context, builder, sig, args):
            return pick(builder, args[0], range(4 * q, 4 * q + 4))

        return f32x4(f32x16), codegen

    quarter.__doc__ = f"Quarter {q} of an f32x16."
    return intrinsic(quarter)


quarter_0, quarter_1, quarter_2, quarter_3 = (_make_quarter(q) for q in range(4))


@intrinsic
def sum_four_floats(typingctx, v):
    """The sum of the lanes of an f32x4 as (0 + 1) + (2 + 3)."""

    def codegen(context, builder, sig, args):
        a, b, c, d = (builder.extract_element(args[0], ir.Constant(I32, i)) for i in range(4))
        return builder.fadd(builder.fadd(a, b), builder.fadd(c, d))

    return types.float32(f32x4), codegen


@intrinsic
def keep_first(typingctx, n, new, old):
    """Lanes of `new` in the first n quarters, of `old` in the others; f32x16."""

    def codegen(context, builder, sig, args):
        quarter = ir.Constant(i32x16.llvm, [i // 4 for i in range(16)])
        limit = splat(builder, builder.trunc(args[0], I32), 16)
        return builder.select(builder.icmp_signed("<", quarter, limit), args[1], args[2])

    return f32x16(types.int64, f32x16, f32x16), codegen


@intrinsic
def add_quarters(typingctx, v):
    """The sum of the quarters of an f32x16 as (0 + 1) + (2 + 3)."""

    def codegen(context, builder, sig, args):
        q0, q1, q2, q3 = (pick(builder, args[0], range(i, i + 4)) for i in range(0, 16, 4))
        return builder.fadd(builder.fadd(q0, q1), builder.fadd(q2, q3))

    return f32x4(f32x16), codegen


@intrinsic
def splat_i32(typingctx, value):
    """The low 32 bits of an int64 in all lanes of an i32x16."""

    def codegen(context, builder, sig, args):
        return splat(builder, builder.trunc(args[0], I32), 16)

    return i32x16(types.int64), codegen


@intrinsic
def splat_i64(typingctx, value):
    """An int64 in all pairs of lanes of an i32x16."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(splat(builder, args[0], 8), i32x16.llvm)

    return i32x16(types.int64), codegen


@intrinsic
def splat_two_i64(typingctx, a, b):
    """An int64 in all pairs of lanes of the first half of an i32x16, and another in those of the second."""

    def codegen(context, builder, sig, args):
        a, b = (splat(builder, value, 4) for value in args)
        return builder.bitcast(pick(builder, a, range(8), b), i32x16.llvm)

    return i32x16(types.int64, types.int64), codegen


def _turn_fours(builder: ir.IRBuilder, rows: list[ir.Value], width: int) -> list[ir.Value]:
    """The 4 x 4 pieces of `width` lanes in each 4 * width lanes of four vectors, turned."""
    starts = range(0, 16, 4 * width)

    def interleave(a: ir.Value, b: ir.Value, first: int) -> ir.Value:
        """Pieces first and first + 1 of a and of b, taking turns."""
        pieces = [
            source + s + piece * width for s in starts for piece in (first, first + 1) for source in (0, 16)
        ]
        return pick(builder, a, [p + i for p in pieces for i in range(width)], b)

    a, b, c, d = rows
    halves = [(interleave(a, c, first), interleave(b, d, first)) for first in (0, 2)]
    return [interleave(*pair, first) for pair in halves for first in (0, 2)]


@intrinsic
def gather_columns(typingctx, places, apart, offset):
    """16 bytes of 16 blocks, turned: i32x64 of the first int32 of all lanes, then the second, and so on.

    Each is read `offset` bytes behind its address (see `lane_addresses`).
    """

    def codegen(context, builder, sig, args):
        quarters = []
        for address in lane_addresses(builder, *args[:2]):
            quarters.append(builder.load(pointer(builder, address, args[2], ir.VectorType(I32, 4))))
            quarters[-1].align = 1
        rows = [join_all(builder, quarters[j::4]) for j in range(4)]
        return join_all(builder, _turn_fours(builder, rows, 1))

    return i32x64(types.int64, types.int64, types.int64), codegen


def _make_column(c: int) -> Callable[..., Any]:
    def column(typingctx, v):
        def codegen(context, builder, sig, args):
            return pick(builder, args[0], range(16 * c, 16 * c + 16))

        return i32x16(i32x64), codegen

    column.__doc__ = f"The int32 number {c} of each lane of `gather_columns`."
    return intrinsic(column)


column_0, column_1, column_2, column_3 = (_make_column(c) for c in range(4))


@intrinsic
def transpose(typingctx, src, dst, stride):
    """The 16 x 16 int32 at src, turned, to dst, where rows are `stride` bytes apart."""

    def codegen(context, builder, sig, args):
        src, dst, stride = args
        rows = []
        for i in range(16):
            rows.append(builder.load(pointer(builder, src, ir.Constant(I64, 64 * i), i32x16.llvm)))
            rows[-1].align = 64
        # Fours of rows inside each four lanes, then fours of these inside the 16 lanes.
        fours = [_turn_fours(builder, rows[i : i + 4], 1) for i in range(0, 16, 4)]
        columns = [_turn_fours(builder, [four[c] for four in fours], 4) for c in range(4)]
        for i in range(16):
            row = columns[i % 4][i // 4]
            place = builder.mul(stride, ir.Constant(I64, i))
            builder.store(row, pointer(builder, dst, place, i32x16.llvm)).align = 64
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
