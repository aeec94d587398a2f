"""Causal attention over the KV cache, with grouped query heads, over all positions or a sliding window.

One chunk is one token and a few heads that share their keys and values, so that these are read once. The
arithmetic is in a fixed order whatever the chunks and threads are: scores by the float dot product of dot.py,
softmax in float32 with the sum in dot.py's order, values added by fma in ascending position. In a cache of
Q8_0 keys and values are the float32 that its blocks stand for; queries are not quantized.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.cpu.arithmetic import ONE, exp, fma
from gguf_moe_kernels.cpu.compile import Kernel, op
from gguf_moe_kernels.cpu.dot import make_dot_float, sum_f32
from gguf_moe_kernels.cpu.elementwise import cell_of
from gguf_moe_kernels.cpu.kv_cache import F16, F32, Q8_0, Elements
from gguf_moe_kernels.cpu.memory import ask_for, load_f32, load_i64, make_stack, store_f32
from gguf_moe_kernels.cpu.queries import (
    add_products,
    add_weighted,
    make_load_store,
    make_zero,
    max_floats,
    store_halved,
    sum_sixteen,
)
from gguf_moe_kernels.cpu.vector import load_f32x16, store_f32x16

ZERO = np.float32(0.0)
AT_ONCE = 16
"""Positions whose scores are computed together."""

stack_maxima = make_stack(64)


@njit
def largest_of(scores, n, at_least):
    """The largest of `at_least` and n float32."""
    whole = n // 16 * 16
    if whole:
        lanes = load_f32x16(scores, 0)
        for j in range(16, whole, 16):
            lanes = max_floats(load_f32x16(scores, 4 * j), lanes)
        maxima = stack_maxima()
        store_f32x16(maxima, 0, lanes)
        for j in range(16):
            at_least = max(at_least, load_f32(maxima, 4 * j))
    for j in range(whole, n):
        at_least = max(at_least, load_f32(scores, 4 * j))
    return at_least


@njit
def softmax(scores, n):
    """exp(score - largest) / sum, in place, float32 [n]."""
    scale_exponentials(scores, n, largest_of(scores, n, load_f32(scores, 0)), ZERO)


@njit
def softmax_with_sink(scores, n, sink):
    """The same with one more score, whose own share is not stored."""
    largest = largest_of(scores, n, sink)
    scale_exponentials(scores, n, largest, exp(sink - largest))


@njit
def scale_exponentials(scores, n, largest, more):
    """exp(score - largest) / (their sum + more), in place."""
    for j in range(n):
        store_f32(scores, 4 * j, exp(load_f32(scores, 4 * j) - largest))
    inverse = ONE / (sum_f32(scores, n) + more)
    for j in range(n):
        store_f32(scores, 4 * j, load_f32(scores, 4 * j) * inverse)


def make_attention(elements: Elements, n: int) -> Kernel:
    """The attention op for a cache of such elements, with n heads in a chunk."""
    nbytes, load_32, load_1 = elements.nbytes, elements.load_32, elements.load
    dot = make_dot_float(load_32, load_1, 1)  # offsets are numbers of elements
    zero, (load_out, store_out) = make_zero(n), make_load_store(n)
    stack_products = make_stack(n * AT_ONCE * 64)

    @njit
    def sixteen_scores(q, q_stride, d, k, k_stride, products):
        """Of AT_ONCE positions: the dot product's lanes, of which 16 are left, to `products`."""
        for j in range(0, AT_ONCE, 2):
            a, b, at = zero(), zero(), k + j * k_stride
            ask_for(at + AT_ONCE * k_stride, nbytes(d))
            ask_for(at + (AT_ONCE + 1) * k_stride, nbytes(d))
            for i in range(0, d, 32):
                a = add_products(a, load_32(at, i), q, q_stride, 4 * i)
                b = add_products(b, load_32(at + k_stride, i), q, q_stride, 4 * i)
            store_halved(products + j * 64, AT_ONCE * 64, a)
            store_halved(products + (j + 1) * 64, AT_ONCE * 64, b)

    @njit
    def compute_scores(q, d, k, k_stride, n_kv, scores, scores_stride, scale):
        """scale * q . k of each head and position."""
        products, j = stack_products(), 0
        if d % 32 == 0:
            while j + AT_ONCE <= n_kv:
                sixteen_scores(q, 4 * d, d, k + j * k_stride, k_stride, products)
                for h in range(n):
                    at = scores + h * scores_stride
                    store_f32x16(at, 4 * j, sum_sixteen(products + h * AT_ONCE * 64))
                    for i in range(j, j + AT_ONCE):
                        store_f32(at, 4 * i, scale * load_f32(at, 4 * i))
                j += AT_ONCE
        while j < n_kv:
            for h in range(n):
                score = scale * dot(k + j * k_stride, q + 4 * h * d, d)
                store_f32(scores + h * scores_stride, 4 * j, score)
            j += 1

    @njit
    def add_values(out, d, v, v_stride, n_kv, scores, scores_stride):
        """out of each head = the sum of values times scores, some positions at a time."""
        whole = d // 32 * 32
        for i in range(n * d):
            store_f32(out, 4 * i, ZERO)
        for start in range(0, n_kv, AT_ONCE):
            end = min(start + AT_ONCE, n_kv)
            for j in range(start, end):
                ask_for(v + (j + AT_ONCE) * v_stride, nbytes(d))
            for i in range(0, whole, 32):
                acc = load_out(out, 4 * d, 4 * i)
                for j in range(start, end):
                    acc = add_weighted(acc, load_32(v + j * v_stride, i), scores, scores_stride, 4 * j)
                store_out(out, 4 * d, 4 * i, acc)
            for h in range(n):
                for i in range(whole, d):
                    total = load_f32(out, 4 * (h * d + i))
                    for j in range(start, end):
                        weight = load_f32(scores + h * scores_stride, 4 * j)
                        total = fma(weight, load_1(v + j * v_stride, i), total)
                    store_f32(out, 4 * (h * d + i), total)

    @op(structs.ATTENTION)
    def attention(args, chunk, thread):
        a = carray(args, 1)[0]
        n_head, n_head_kv, d_k, d_v = a.n_head, a.n_head_kv, a.n_embd_head_k, a.n_embd_head_v
        token, head = chunk // (n_head // n), chunk % (n_head // n) * n
        if token >= load_i64(a.rows, 0):
            return 0
        head_kv = head // (n_head // n_head_kv)
        q, out = a.q + 4 * (token * n_head + head) * d_k, a.out + 4 * (token * n_head + head) * d_v
        k, k_stride = a.k + nbytes(head_kv * d_k), nbytes(n_head_kv * d_k)
        v, v_stride = a.v + nbytes(head_kv * d_v), nbytes(a.v_width)
        scores = a.scores + thread * n * a.scores_stride
        first, position = cell_of(a.cells, a.n_past, token)
        n_kv = position + 1
        if 0 < a.n_swa < n_kv:
            seen = (n_kv - 1) % a.n_swa + 1 if a.chunked else a.n_swa
            first += n_kv - seen
            n_kv = seen
        k, v = k + first * k_stride, v + first * v_stride
        compute_scores(q, d_k, k, k_stride, n_kv, scores, a.scores_stride, a.scale)
        for h in range(n):
            mine = scores + h * a.scores_stride
            if a.sinks:
                softmax_with_sink(mine, n_kv, load_f32(a.sinks, 4 * (head + h)))
            else:
                softmax(mine, n_kv)
        add_values(out, d_v, v, v_stride, n_kv, scores, a.scores_stride)
        return 1

    return attention


attention_f16_1, attention_f16_2, attention_f16_4 = (make_attention(F16, n) for n in structs.HEADS_AT_ONCE)
attention_f32_1, attention_f32_2, attention_f32_4 = (make_attention(F32, n) for n in structs.HEADS_AT_ONCE)
attention_q8_0_1, attention_q8_0_2, attention_q8_0_4 = (
    make_attention(Q8_0, n) for n in structs.HEADS_AT_ONCE
)
