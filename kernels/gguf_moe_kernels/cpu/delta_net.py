"""Ops of gated delta nets. Convolution and recurrence take the tokens one by one, in their order."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.arithmetic import ONE, exp, fma, sigmoid, silu, softplus, sqrt, to_float
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.dot import dot_f32
from gguf_moe_kernels.cpu.elementwise import cell_of
from gguf_moe_kernels.cpu.memory import fill_zero, load_f32, load_i32, load_i64, store_f32

ZERO = np.float32(0.0)
CHANNELS = 64
"""Channels of one chunk of the convolution."""


@op(structs.L2_NORM)
def l2_norm(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n = a.n
    for h in range(a.n_head):
        x = a.x + 4 * (chunk * a.width + h * n)
        factor = ONE / sqrt(dot_f32(x, x, n) + a.eps)
        for i in range(n):
            store_f32(x, 4 * i, load_f32(x, 4 * i) * factor)
    return 1


@njit
def neighbours(cells, n_past, rows, token, n_ctx):
    """The sequence of a token, its position there, and the first token behind it that is in another one."""
    first, position = cell_of(cells, n_past, token)
    end = rows
    if cells:
        end = token + 1
        while end < rows and load_i32(cells, 8 * end) == first:
            end += 1
    return first // n_ctx, position, end


@op(structs.SSM_CONV)
def ssm_conv(args, chunk, thread):
    a = carray(args, 1)[0]
    first, stride = CHANNELS * chunk, 4 * a.n
    if first >= a.n:
        return 0
    rows, n, n_state = load_i64(a.rows, 0), min(CHANNELS, a.n - first), a.d_conv - 1
    weight = a.weight + 4 * first * a.d_conv
    token = 0
    while token < rows:
        sequence, position, end = neighbours(a.cells, a.n_past, rows, token, a.n_ctx)
        x, out = a.x + token * stride + 4 * first, a.out + token * stride + 4 * first
        state = a.state + sequence * n_state * stride + 4 * first
        if position == 0:
            for i in range(n_state):
                fill_zero(state + i * stride, 4 * n)
        convolve(x, weight, state, out, end - token, n, a.d_conv, stride)
        token = end
    return 1


@njit
def convolve(x, weight, state, out, rows, n, d_conv, stride):
    """The tokens of one sequence, n channels; rows lie `stride` bytes apart."""
    n_state = d_conv - 1
    for i in range(rows):
        row = out + i * stride
        for c in range(n):
            store_f32(row, 4 * c, ZERO)
        for j in range(d_conv):
            source = state + (i + j) * stride if i + j < n_state else x + (i + j - n_state) * stride
            add_products(row, source, weight + 4 * j, d_conv, n)
        for c in range(n):
            store_f32(row, 4 * c, silu(load_f32(row, 4 * c)))
    for i in range(n_state):
        source = state + (i + rows) * stride if i + rows < n_state else x + (i + rows - n_state) * stride
        for c in range(n):
            store_f32(state + i * stride, 4 * c, load_f32(source, 4 * c))


@njit
def add_products(total, x, weight, stride, n):
    """total[c] += weight[c * stride] * x[c] for n float32, by fma."""
    for c in range(n):
        product = fma(load_f32(weight, 4 * c * stride), load_f32(x, 4 * c), load_f32(total, 4 * c))
        store_f32(total, 4 * c, product)


@op(structs.DELTA_NET_GATES)
def delta_net_gates(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, alpha, beta = a.n, a.alpha + 4 * a.n * chunk, a.beta + 4 * a.n * chunk
    for i in range(n):
        step = softplus(load_f32(alpha, 4 * i) + load_f32(a.dt, 4 * i))
        store_f32(alpha, 4 * i, exp(load_f32(a.a, 4 * i) * step))
        store_f32(beta, 4 * i, sigmoid(load_f32(beta, 4 * i)))
    return 1


@op(structs.GATED_DELTA_NET)
def gated_delta_net(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= a.n_head:
        return 0
    n = a.n
    of_key = chunk // a.heads_per_key % a.n_head_k
    scale = ONE / sqrt(to_float(n))
    rows = load_i64(a.rows, 0)
    token = 0
    while token < rows:
        sequence, position, end = neighbours(a.cells, a.n_past, rows, token, a.n_ctx)
        state = a.state + 4 * n * n * (sequence * a.n_head + chunk)
        if position == 0:
            fill_zero(state, 4 * n * n)
        for i in range(token, end):
            row = a.qkv + 4 * n * i * (2 * a.n_head_k + a.n_head)
            q, k = row + 4 * n * of_key, row + 4 * n * (a.n_head_k + of_key)
            v, out = row + 4 * n * (2 * a.n_head_k + chunk), a.out + 4 * n * (i * a.n_head + chunk)
            place = 4 * (i * a.n_head + chunk)
            update(state, q, k, v, load_f32(a.decay, place), load_f32(a.beta, place), n, out, scale)
        token = end
    return 1


@njit
def update(state, q, k, v, decay, beta, n, out, scale):
    """One token of one head."""
    for j in range(n):
        s = state + 4 * n * j
        for c in range(n):
            store_f32(s, 4 * c, load_f32(s, 4 * c) * decay)
        change = (load_f32(v, 4 * j) - dot_f32(s, k, n)) * beta
        for c in range(n):
            store_f32(s, 4 * c, fma(load_f32(k, 4 * c), change, load_f32(s, 4 * c)))
        store_f32(out, 4 * j, dot_f32(s, q, n) * scale)
