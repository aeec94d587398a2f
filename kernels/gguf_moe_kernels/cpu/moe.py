"""The router's choice, the sorting of tokens by expert, and the sum of the experts' outputs."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from gguf_moe_kernels import structs
from gguf_moe_kernels.constants import SMALLEST_SUM
from gguf_moe_kernels.cpu.arithmetic import ONE, fma, sigmoid
from gguf_moe_kernels.cpu.attention import softmax
from gguf_moe_kernels.cpu.compile import op
from gguf_moe_kernels.cpu.dot import dot_f32, sum_f32
from gguf_moe_kernels.cpu.memory import load_f32, load_i32, load_i64, store_f32, store_i32, store_i64
from gguf_moe_kernels.gating import Gating

ZERO, MINUS_INFINITY = np.float32(0.0), np.float32(-np.inf)
SOFTMAX, SIGMOID = int(Gating.SOFTMAX), int(Gating.SIGMOID)
SOFTMAX_WEIGHT, SIGMOID_WEIGHT = int(Gating.SOFTMAX_WEIGHT), int(Gating.SIGMOID_WEIGHT)


@njit
def choose(probabilities, n_expert, k, ids):
    """The k largest, largest first; of equal ones the lowest index first.

    With NaN among them the choice is arbitrary but valid: NaN reaches the logits, where it is reported.
    """
    last, last_value = -1, ZERO
    for j in range(k):
        best, best_value = -1, ZERO
        for e in range(n_expert):
            value = load_f32(probabilities, 4 * e)
            is_left = last < 0 or value < last_value or (value == last_value and e > last)
            if is_left and (best < 0 or value > best_value):
                best, best_value = e, value
        if best < 0:
            best, best_value = (last + 1) % n_expert, last_value
        store_i32(ids, 4 * j, best)
        last, last_value = best, best_value


@njit
def mask_groups(selection, size, n_group, n_group_used, scores):
    """Put -infinity for the experts outside the best n_group_used groups of `size` experts, in place.

    A group's score is the sum of its two largest; of equal groups the first counts as better.
    """
    for g in range(n_group):
        largest, second = MINUS_INFINITY, MINUS_INFINITY
        for e in range(size):
            value = load_f32(selection, 4 * (g * size + e))
            second = max(second, min(largest, value))
            largest = max(largest, value)
        store_f32(scores, 4 * g, largest + second)
    for g in range(n_group):
        score, n_better = load_f32(scores, 4 * g), 0
        for other in range(n_group):
            other_score = load_f32(scores, 4 * other)
            n_better += other_score > score or (other_score == score and other < g)
        if n_better >= n_group_used:
            for e in range(size):
                store_f32(selection, 4 * (g * size + e), MINUS_INFINITY)


@op(structs.MOE_TOPK)
def moe_topk(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n_expert, k, gating, n_group = a.n_expert, a.k, a.gating, a.n_group
    p, ids, weights = a.logits + chunk * 4 * n_expert, a.ids + chunk * 4 * k, a.weights + chunk * 4 * k
    selection = a.selection + chunk * 4 * n_expert
    if gating == SOFTMAX:
        softmax(p, n_expert)
    elif gating == SIGMOID:
        for e in range(n_expert):
            store_f32(p, 4 * e, sigmoid(load_f32(p, 4 * e)))
    if selection != p:
        for e in range(n_expert):
            bias = load_f32(a.bias, 4 * e) if a.bias else ZERO
            store_f32(selection, 4 * e, load_f32(p, 4 * e) + bias)
    if a.group_scores:
        scores = a.group_scores + chunk * 4 * n_group
        mask_groups(selection, n_expert // n_group, n_group, a.n_group_used, scores)
    if a.given:
        for j in range(k):
            store_i32(ids, 4 * j, load_i32(a.given + chunk * a.given_stride, 4 * j))
    else:
        choose(selection, n_expert, k, ids)
    # 0, or NaN if an expert is not finite: then the choice means nothing, and the output must show it.
    check = sum_f32(p, n_expert)
    check = check - check
    for j in range(k):
        store_f32(weights, 4 * j, load_f32(p, 4 * load_i32(ids, 4 * j)) + check)
    if gating == SOFTMAX_WEIGHT:
        softmax(weights, k)
    elif gating == SIGMOID_WEIGHT:
        for j in range(k):
            store_f32(weights, 4 * j, sigmoid(load_f32(weights, 4 * j)))
    total = ONE
    if a.normalize:
        total = ZERO
        for j in range(k):
            total += load_f32(weights, 4 * j)
        total = max(total, SMALLEST_SUM)
    for j in range(k):
        store_f32(weights, 4 * j, load_f32(weights, 4 * j) / total * a.weights_scale)
    return 1


@op(structs.EXPERT_ROWS)
def expert_rows(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk:
        return 0
    n, n_expert, k = load_i64(a.rows, 0) * a.k, a.n_expert, a.k
    next_place = a.counts
    for e in range(n_expert):
        store_i32(next_place, 4 * e, 0)
    for i in range(n):
        e = load_i32(a.ids, 4 * i)
        store_i32(next_place, 4 * e, load_i32(next_place, 4 * e) + 1)
    place, n_used = 0, 0
    for e in range(n_expert):
        count = load_i32(next_place, 4 * e)
        store_i32(next_place, 4 * e, place)
        if count:
            store_i32(a.used, 4 * n_used, e)
            store_i32(a.first, 4 * n_used, place)
            n_used += 1
            place += count
    store_i32(a.first, 4 * n_used, place)
    store_i64(a.n_used, 0, n_used)
    for i in range(n):
        e = load_i32(a.ids, 4 * i)
        place = load_i32(next_place, 4 * e)
        store_i32(next_place, 4 * e, place + 1)
        store_i32(a.place, 4 * i, place)
        store_i32(a.token, 4 * place, i // k)
    return 1


@op(structs.ADD_ID)
def add_id(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, k = a.n, a.k
    for j in range(chunk * k, (chunk + 1) * k):
        place = load_i32(a.place, 4 * j)
        if place < 0:
            continue
        x, bias = a.x + place * 4 * n, a.bias + load_i32(a.ids, 4 * j) * 4 * n
        for i in range(n):
            store_f32(x, 4 * i, load_f32(x, 4 * i) + load_f32(bias, 4 * i))
    return 1


@op(structs.SCALE_ID)
def scale_id(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, k = a.n, a.k
    for j in range(chunk * k, (chunk + 1) * k):
        place = load_i32(a.place, 4 * j)
        if place < 0:
            continue
        x, scale = a.x + place * 4 * n, load_f32(a.scale, 4 * load_i32(a.ids, 4 * j))
        for i in range(n):
            store_f32(x, 4 * i, load_f32(x, 4 * i) * scale)
    return 1


@op(structs.WEIGH)
def weigh(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, k, x = a.n, a.k, a.x + chunk * 4 * a.n
    for j in range(chunk * k, (chunk + 1) * k):
        place = load_i32(a.place, 4 * j)
        if place < 0:
            continue
        weight, out = load_f32(a.weights, 4 * j), a.out + place * 4 * n
        for i in range(n):
            store_f32(out, 4 * i, weight * load_f32(x, 4 * i))
    return 1


@op(structs.MOE_SUM)
def moe_sum(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, k = a.n, a.k
    out = a.out + chunk * 4 * n
    for i in range(n):
        store_f32(out, 4 * i, ZERO)
    for j in range(k):
        weight = load_f32(a.weights, 4 * (chunk * k + j)) if a.weights else ONE
        x = a.x + load_i32(a.place, 4 * (chunk * k + j)) * 4 * n
        for i in range(n):
            store_f32(out, 4 * i, fma(weight, load_f32(x, 4 * i), load_f32(out, 4 * i)))
    for addend in (a.shared, a.residual):
        if addend:
            for i in range(n):
                store_f32(out, 4 * i, load_f32(out, 4 * i) + load_f32(addend + chunk * 4 * n, 4 * i))
    return 1


@op(structs.SHEXP_GATE)
def shexp_gate(args, chunk, thread):
    a = carray(args, 1)[0]
    if chunk >= load_i64(a.rows, 0):
        return 0
    n, x, out = a.n, a.x + chunk * 4 * a.n_in, a.out + chunk * 4 * a.n
    gate = sigmoid(dot_f32(a.weight, x, a.n_in))
    for i in range(n):
        store_f32(out, 4 * i, gate * load_f32(out, 4 * i))
    return 1
