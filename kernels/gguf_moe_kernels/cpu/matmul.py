"""Weights times activations, dense and by expert. The arithmetic is in the tiles of the weight types."""

from __future__ import annotations

from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.memory import load_f32, load_i32, load_i64, make_call, store_f32

call_tile = make_call(10)


@njit
def spread(chunk, n_chunks, n_threads):
    """Which of n_chunks comes as number `chunk`, or -1 when there are no more.

    Each thread goes through a part of its own while all take turns: the kernels ask for the memory behind a
    chunk, and that should be the chunk that the same thread takes next.
    """
    per_thread = (n_chunks + n_threads - 1) // n_threads
    if chunk >= per_thread * n_threads:
        return -1
    return chunk % n_threads * per_thread + chunk // n_threads


@op(structs.MATMUL)
def matmul(args, chunk, thread):
    a = carray(args, 1)[0]
    n_x, n_out = load_i64(a.rows, 0), a.n_out
    chunk_rows = a.one_token_rows if n_x == 1 else a.chunk_rows
    place = spread(chunk, (n_out + chunk_rows - 1) // chunk_rows, a.n_threads)
    if place < 0:
        return 0
    start = place * chunk_rows
    if start >= n_out:
        return 1
    n_rows = min(chunk_rows, n_out - start)
    out, bias, residual = a.out + 4 * start, a.bias, a.residual
    call_tile(
        a.tile,
        a.weight + start * a.row_size,
        a.row_size,
        n_rows,
        a.n_in,
        a.x,
        a.x_stride,
        0,
        n_x,
        out,
        4 * n_out,
    )
    if bias:
        for t in range(n_x):
            for r in range(n_rows):
                at = 4 * (t * n_out + r)
                store_f32(out, at, load_f32(out, at) + load_f32(bias, 4 * (start + r)))
    if residual:
        for t in range(n_x):
            for r in range(n_rows):
                at = 4 * (t * n_out + r)
                store_f32(out, at, load_f32(out, at) + load_f32(residual + 4 * start, at))
    return 1


@op(structs.MATMUL_HEADS)
def matmul_heads(args, chunk, thread):
    a = carray(args, 1)[0]
    chunks_per_head = (a.n_out + a.chunk_rows - 1) // a.chunk_rows
    place = spread(chunk, a.n_head * chunks_per_head, a.n_threads)
    if place < 0:
        return 0
    head = place // chunks_per_head
    if head >= a.n_head:
        return 1
    start = (place - head * chunks_per_head) * a.chunk_rows
    first_row = head * a.n_out + start
    call_tile(
        a.tile,
        a.weight + first_row * a.row_size,
        a.row_size,
        min(a.chunk_rows, a.n_out - start),
        a.n_in,
        a.x + head * a.x_stride,
        a.n_head * a.x_stride,
        0,
        load_i64(a.rows, 0),
        a.out + 4 * first_row,
        4 * a.n_head * a.n_out,
    )
    return 1


@op(structs.MATMUL_ID)
def matmul_id(args, chunk, thread):
    a = carray(args, 1)[0]
    n_used = load_i64(a.n_used, 0)
    is_one_token = load_i32(a.first, 4 * n_used) == n_used
    chunk_rows = a.one_token_rows if is_one_token else a.chunk_rows
    chunks_per_expert = (a.n_out + chunk_rows - 1) // chunk_rows
    place = spread(chunk, n_used * chunks_per_expert, a.n_threads)
    if place < 0:
        return 0
    u = place // chunks_per_expert
    if u >= n_used:
        return 1
    start = (place - u * chunks_per_expert) * chunk_rows
    expert = load_i32(a.used, 4 * u)
    first = load_i32(a.first, 4 * u)
    n_x = load_i32(a.first, 4 * u + 4) - first
    row_size = load_i64(a.row_sizes, 8 * expert)
    x, x_stride = load_i64(a.x, 8 * expert), load_i64(a.x_stride, 8 * expert)
    call_tile(
        load_i64(a.tiles, 8 * expert),
        load_i64(a.weights, 8 * expert) + start * row_size,
        row_size,
        min(chunk_rows, a.n_out - start),
        a.n_in,
        x if a.x_index else x + first * x_stride,
        x_stride,
        a.x_index + 4 * first if a.x_index else 0,
        n_x,
        a.out + 4 * (first * a.n_out + start),
        4 * a.n_out,
    )
    return 1
