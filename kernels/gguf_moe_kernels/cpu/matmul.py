"""Weights times activations, dense and by expert. The arithmetic is in the tiles of the weight types."""

from __future__ import annotations

from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.each import MOST_TOKENS
from gguf_moe_kernels.cpu.memory import load_f32, load_i32, load_i64, make_call, store_f32
from gguf_moe_kernels.cpu.tokens import ROWS

call_tile = make_call(10)

FEW_TOKENS = 8
"""Activations of an expert, on average, up to which threads take portions of all experts' rows, as for one
token. With more they take chunks of rows that stay in the core's cache while all activations pass by."""


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


@njit
def portion(claim, n, rows, least, n_threads):
    """What claim number `claim` takes of n rows for few tokens: the first, and how many; 0 if all are taken.

    Each n_threads claims take half of what is left, each at least `least` rows, and whole times `rows` where
    that is enough for one. So threads read long streams at first, and in the end none waits long for the last
    one (guided self-scheduling).
    """
    start, size = 0, 0
    for _ in range(claim // n_threads + 1):
        start += size * n_threads
        if start >= n:
            return n, 0
        size = max(least, (n - start) // (8 * n_threads) * 4)
        if size > rows:
            size = size // rows * rows
    start += size * (claim % n_threads)
    return start, max(0, min(size, n - start))


@njit
def multiply_rows(a, start, n_rows, n_x):
    """So many rows of the matrix times all activations, with bias and residual."""
    n_out, bias, residual = a.n_out, a.bias, a.residual
    out = a.out + 4 * start
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


@op(structs.MATMUL)
def matmul(args, chunk, thread):
    a = carray(args, 1)[0]
    n_x, n_out = load_i64(a.rows, 0), a.n_out
    if n_x < MOST_TOKENS:
        start, n_rows = portion(chunk, n_out, a.one_token_rows, a.least_rows, a.n_threads)
        stop = start + n_rows
        for at in range(start, stop, a.one_token_rows):
            multiply_rows(a, at, min(a.one_token_rows, stop - at), n_x)
        return 1 if n_rows else 0
    place = spread(chunk, (n_out + a.chunk_rows - 1) // a.chunk_rows, a.n_threads)
    if place < 0:
        return 0
    start = place * a.chunk_rows
    if start < n_out:
        multiply_rows(a, start, min(a.chunk_rows, n_out - start), n_x)
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


@njit
def multiply_expert_rows(a, u, start, n_rows):
    """So many rows of the matrix of the u-th expert in use times its activations."""
    expert, first = load_i32(a.used, 4 * u), load_i32(a.first, 4 * u)
    n_x = load_i32(a.first, 4 * u + 4) - first
    row_size = load_i64(a.row_sizes, 8 * expert)
    x, x_stride = load_i64(a.x, 8 * expert), load_i64(a.x_stride, 8 * expert)
    call_tile(
        load_i64(a.tiles, 8 * expert),
        load_i64(a.weights, 8 * expert) + start * row_size,
        row_size,
        n_rows,
        a.n_in,
        x if a.x_index else x + first * x_stride,
        x_stride,
        a.x_index + 4 * first if a.x_index else 0,
        n_x,
        a.out + 4 * (first * a.n_out + start),
        4 * a.n_out,
    )


@njit
def multiply_sequence(a, start, stop):
    """Some rows of the sequence that the matrices of all experts in use are."""
    while start < stop:
        u = start // a.n_out
        n_x = load_i32(a.first, 4 * u + 4) - load_i32(a.first, 4 * u)
        end = min(stop, (u + 1) * a.n_out)
        if n_x < MOST_TOKENS:  # read as for one token (few_tokens.py), whatever the type
            end = min(end, start + a.one_token_rows)
        multiply_expert_rows(a, u, start - u * a.n_out, end - start)
        start = end


@op(structs.MATMUL_ID)
def matmul_id(args, chunk, thread):
    a = carray(args, 1)[0]
    n_used, n_out = load_i64(a.n_used, 0), a.n_out
    n_x = load_i32(a.first, 4 * n_used)
    if n_x <= FEW_TOKENS * n_used:
        rows, least = (a.one_token_rows, a.least_rows) if n_x == n_used else (ROWS, ROWS)
        start, n_rows = portion(chunk, n_used * n_out, rows, least, a.n_threads)
        multiply_sequence(a, start, start + n_rows)
        return 1 if n_rows else 0
    chunks_per_expert = (n_out + a.chunk_rows - 1) // a.chunk_rows
    place = spread(chunk, n_used * chunks_per_expert, a.n_threads)
    if place < 0:
        return 0
    u = place // chunks_per_expert
    if u < n_used:
        start = (place - u * chunks_per_expert) * a.chunk_rows
        multiply_expert_rows(a, u, start, min(a.chunk_rows, n_out - start))
    return 1
