"""Ops that touch each activation once: token rows, norm, scale, rope, gate, the store into the KV cache."""

from __future__ import annotations

from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.constants import OAI_ALPHA, OAI_LIMIT
from gguf_moe_kernels.cpu.arithmetic import ONE, TWO, exp, fma, gelu, sigmoid, silu, sqrt, to_float
from gguf_moe_kernels.cpu.compile import Kernel, op
from gguf_moe_kernels.cpu.dot import dot_f32
from gguf_moe_kernels.cpu.kv_cache import F16, F32, Q8_0, Elements
from gguf_moe_kernels.cpu.memory import copy_bytes, load_f32, load_i32, load_i64, make_call, store_f32
from gguf_moe_kernels.cpu.parts import part_of

call_dequantize = make_call(3)


@op(structs.GET_ROWS)
def get_rows(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    token = load_i32(a.tokens, 4 * chunk)
    call_dequantize(a.dequantize, a.weight + token * a.row_size, a.out + chunk * 4 * a.n, a.n)
    return 1


@op(structs.RMS_NORM)
def rms_norm(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, weight, bias = a.n, a.weight, a.bias
    for h in range(a.n_head):
        start = 4 * n * (chunk * a.n_head + h)
        x, out = a.x + start, a.out + start
        factor = ONE / sqrt(dot_f32(x, x, n) / to_float(n) + a.eps)
        if weight:
            for i in range(n):
                store_f32(out, 4 * i, load_f32(x, 4 * i) * factor * load_f32(weight, 4 * i))
        else:
            for i in range(n):
                store_f32(out, 4 * i, load_f32(x, 4 * i) * factor)
        if bias:
            for i in range(n):
                store_f32(out, 4 * i, load_f32(out, 4 * i) + load_f32(bias, 4 * i))
    return 1


@op(structs.SCALE)
def scale(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, start = a.n, 4 * a.n * chunk
    x, out = a.x + start, a.out + start
    for i in range(n):
        store_f32(out, 4 * i, a.factor * load_f32(x, 4 * i))
    if a.residual:
        for i in range(n):
            store_f32(out, 4 * i, load_f32(out, 4 * i) + load_f32(a.residual + start, 4 * i))
    return 1


@op(structs.SCALE_ROWS)
def scale_rows(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, x, factor = a.n, a.x + 4 * a.n * chunk, load_f32(a.factors, 4 * chunk)
    for i in range(n):
        store_f32(x, 4 * i, load_f32(x, 4 * i) * factor)
    return 1


@op(structs.CONCAT)
def concat(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n_a, n_b = a.n_a, a.n_b
    for head in range(chunk * a.n_head, (chunk + 1) * a.n_head):
        first, out = a.a + 4 * head * n_a, a.out + 4 * head * (n_a + n_b)
        second = a.b + 4 * ((head + 1) * a.b_width - n_b)
        for i in range(n_a):
            store_f32(out, 4 * i, load_f32(first, 4 * i))
        for i in range(n_b):
            store_f32(out, 4 * (n_a + i), load_f32(second, 4 * i))
    return 1


@op(structs.PARTS)
def parts(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n = a.n
    first, out = a.x + 4 * (chunk * a.x_width + a.first), a.out + 4 * (chunk * a.out_width + a.out_first)
    for h in range(a.n_head):
        copy_bytes(out + 4 * h * n, first + 4 * h * a.stride, 4 * n)
    return 1


@njit
def rotate(x, n_pairs, step, pair_stride, cos, sin):
    """Turn each pair (x[i * step], x[i * step + pair_stride]) by its angle, in place."""
    for i in range(n_pairs):
        first, second = 4 * i * step, 4 * (i * step + pair_stride)
        x0, x1 = load_f32(x, first), load_f32(x, second)
        c, s = load_f32(cos, 4 * i), load_f32(sin, 4 * i)
        store_f32(x, first, fma(x0, c, -(x1 * s)))
        store_f32(x, second, fma(x0, s, x1 * c))


@op(structs.ROPE)
def rope(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n_pairs = a.n_rot // 2
    step = 2 if a.pair_stride == 1 else 1
    angles = chunk * 4 * n_pairs
    for h in range(a.n_head):
        head = a.x + (chunk * a.n_head + h) * 4 * a.n_embd_head
        rotate(head, n_pairs, step, a.pair_stride, a.cos + angles, a.sin + angles)
    return 1


@njit
def cell_of(cells, n_past, token):
    """The first cell of a token's sequence, and the token's position there."""
    if cells:
        return load_i32(cells, 8 * token), load_i32(cells, 8 * token + 4)
    return 0, load_i64(n_past, 0) + token


def make_kv_store(elements: Elements) -> Kernel:
    """The kv_store op for a cache of such elements."""
    nbytes, store = elements.nbytes, elements.store

    @op(structs.KV_STORE)
    def kv_store(args, chunk, thread):
        a = carray(args, 1)[0]
        if chunk >= load_i64(a.rows, 0):
            return 0
        first, position = cell_of(a.cells, a.n_past, chunk)
        store(a.cache + (first + position) * nbytes(a.n), a.x + chunk * 4 * a.n, a.n)
        return 1

    return kv_store


kv_store_f16, kv_store_f32, kv_store_q8_0 = (make_kv_store(elements) for elements in (F16, F32, Q8_0))


@op(structs.SWIGLU)
def swiglu(args, chunk, thread):
    a = carray(args, 1)[0]
    row, first, stop = part_of(chunk, a.n)
    if row >= load_i64(a.rows, 0):
        return 0
    gate, up = a.gate + row * 4 * a.n, a.up + row * 4 * a.n
    for i in range(first, stop):
        store_f32(gate, 4 * i, silu(load_f32(gate, 4 * i)) * load_f32(up, 4 * i))
    return 1


@op(structs.SWIGLU_OAI)
def swiglu_oai(args, chunk, thread):
    a = carray(args, 1)[0]
    row, first, stop = part_of(chunk, a.n)
    if row >= load_i64(a.rows, 0):
        return 0
    gate, up = a.gate + row * 4 * a.n, a.up + row * 4 * a.n
    for i in range(first, stop):
        g, u = load_f32(gate, 4 * i), load_f32(up, 4 * i)
        # NaN goes through both comparisons as it is.
        g = OAI_LIMIT if g > OAI_LIMIT else g
        u = OAI_LIMIT if u > OAI_LIMIT else (-OAI_LIMIT if u < -OAI_LIMIT else u)
        store_f32(gate, 4 * i, g / (ONE + exp(-(OAI_ALPHA * g))) * (u + ONE))
    return 1


@op(structs.GEGLU)
def geglu(args, chunk, thread):
    a = carray(args, 1)[0]
    row, first, stop = part_of(chunk, a.n)
    if row >= load_i64(a.rows, 0):
        return 0
    gate, up = a.gate + row * 4 * a.n, a.up + row * 4 * a.n
    for i in range(first, stop):
        store_f32(gate, 4 * i, gelu(load_f32(gate, 4 * i)) * load_f32(up, 4 * i))
    return 1


@op(structs.SOFTCAP)
def softcap(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, x, factor = a.n, a.x + chunk * 4 * a.n, TWO / a.cap
    for i in range(n):
        store_f32(x, 4 * i, a.cap * (ONE - TWO / (ONE + exp(load_f32(x, 4 * i) * factor))))
    return 1


@op(structs.SIGMOID_MUL)
def sigmoid_mul(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, x, gate = a.n, a.x + chunk * 4 * a.n, a.gate + chunk * 4 * a.n
    for i in range(n):
        store_f32(x, 4 * i, load_f32(x, 4 * i) * sigmoid(load_f32(gate, 4 * i)))
    return 1
