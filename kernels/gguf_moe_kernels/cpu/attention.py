"""Causal attention over the KV cache, with grouped query heads, over all positions or a sliding window.

One chunk is one head of one token. Its arithmetic is in a fixed order whatever the chunks and threads are:
scores by the float dot product of dot.py, softmax in float32 with the sum in dot.py's order, values added by
fma in ascending position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.arithmetic import ONE, exp, fma
from gguf_moe_kernels.cpu.compile import Kernel, op
from gguf_moe_kernels.cpu.dot import dot_f32, make_dot_float, sum_f32
from gguf_moe_kernels.cpu.memory import load_f16, load_f32, load_i64, store_f32
from gguf_moe_kernels.cpu.vector import load_f16x32

ZERO = np.float32(0.0)


@njit
def softmax(scores, n):
    """exp(score - largest) / sum, in place, float32 [n]."""
    largest = load_f32(scores, 0)
    for j in range(1, n):
        largest = max(largest, load_f32(scores, 4 * j))
    scale_exponentials(scores, n, largest, ZERO)


@njit
def softmax_with_sink(scores, n, sink):
    """The same with one more score, whose own share is not stored."""
    largest = sink
    for j in range(n):
        largest = max(largest, load_f32(scores, 4 * j))
    scale_exponentials(scores, n, largest, exp(sink - largest))


@njit
def scale_exponentials(scores, n, largest, more):
    """exp(score - largest) / (their sum + more), in place."""
    for j in range(n):
        store_f32(scores, 4 * j, exp(load_f32(scores, 4 * j) - largest))
    inverse = ONE / (sum_f32(scores, n) + more)
    for j in range(n):
        store_f32(scores, 4 * j, load_f32(scores, 4 * j) * inverse)


def make_attention(dot: Callable[..., Any], load: Callable[..., Any], size: int) -> Kernel:
    """The attention op for a cache whose elements have `size` bytes."""

    @njit
    def add_values(out, n, v, weight):
        for i in range(n):
            store_f32(out, 4 * i, fma(weight, load(v, size * i), load_f32(out, 4 * i)))

    @op(structs.ATTENTION)
    def attention(args, chunk, thread):
        a = carray(args, 1)[0]
        n_head, n_head_kv, d_k, d_v = a.n_head, a.n_head_kv, a.n_embd_head_k, a.n_embd_head_v
        token, head = chunk // n_head, chunk % n_head
        if token >= load_i64(a.rows, 0):
            return 0
        head_kv = head // (n_head // n_head_kv)
        q, out = a.q + 4 * chunk * d_k, a.out + 4 * chunk * d_v
        k, k_stride = a.k + size * head_kv * d_k, size * n_head_kv * d_k
        v, v_stride = a.v + size * head_kv * d_v, size * n_head_kv * d_v
        scores, scale = a.scores + thread * a.scores_stride, a.scale
        n_kv, first = load_i64(a.n_past, 0) + token + 1, 0
        if 0 < a.n_swa < n_kv:
            first = n_kv - a.n_swa
            n_kv = a.n_swa
        k, v = k + first * k_stride, v + first * v_stride
        for j in range(n_kv):
            store_f32(scores, 4 * j, scale * dot(k + j * k_stride, q, d_k))
        if a.sinks:
            softmax_with_sink(scores, n_kv, load_f32(a.sinks, 4 * head))
        else:
            softmax(scores, n_kv)
        for i in range(d_v):
            store_f32(out, 4 * i, ZERO)
        for j in range(n_kv):
            add_values(out, d_v, v + j * v_stride, load_f32(scores, 4 * j))
        return 1

    return attention


attention_f16 = make_attention(make_dot_float(load_f16x32, load_f16, 2), load_f16, 2)
attention_f32 = make_attention(dot_f32, load_f32, 4)
