"""The ops that touch activations only. Each writes into its outputs, under the names that tasks use.

Arrays have one row for each token of the step, float32 unless said; options are numbers.
"""

from __future__ import annotations

import numpy as np

from gguf_moe_kernels.constants import SMALLEST_SUM
from gguf_moe_kernels.gating import Gating
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import exact
from gguf_moe_kernels.ref.exact import ONE, fma, quiet
from gguf_moe_kernels.ref.quants import dequantize


def get_rows(qtype: GGMLType, weight: np.ndarray, tokens: np.ndarray, out: np.ndarray) -> None:
    """out[i] = row tokens[i] of weight. weight: u8 [n_rows, row_size]; tokens: int32 [rows]."""
    out[:] = dequantize(qtype, weight[tokens])


@quiet
def rms_norm(x: np.ndarray, weight: np.ndarray, out: np.ndarray, eps: float) -> None:
    """out[i] = x[i] / sqrt(mean(x[i]^2) + eps) * weight."""
    mean = exact.dot(x, x) / np.float32(x.shape[1])
    factor = ONE / np.sqrt(mean + np.float32(eps))
    out[:] = x * factor[:, None] * weight


@quiet
def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, n_head: int, n_rot: int, pair_stride: int) -> None:
    """Rotate the first n_rot elements of each of n_head heads, in place. cos, sin: [rows, n_rot / 2].

    pair_stride 1: neighbours are a pair; n_rot / 2: an element of the first half with one of the second.
    """
    heads = x.reshape(len(x), n_head, -1)
    i = np.arange(n_rot // 2)
    first = 2 * i if pair_stride == 1 else i
    second = first + pair_stride
    x0, x1 = heads[..., first], heads[..., second]
    c, s = cos[:, None, :], sin[:, None, :]
    heads[..., first] = fma(x0, c, -(x1 * s))
    heads[..., second] = fma(x0, s, x1 * c)


@quiet
def kv_store(x: np.ndarray, cache: np.ndarray, n_past: int) -> None:
    """cache[n_past + i] = x[i]. cache: float16 or float32 [n_ctx, n]."""
    cache[n_past : n_past + len(x)] = x


@quiet
def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x - largest) / sum over the last axis."""
    e = exact.exp(x - x.max(axis=-1, keepdims=True))
    return e * (ONE / exact.sum(e))[..., None]


@quiet
def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    n_past: int,
    n_head: int,
    n_head_kv: int,
    scale: float,
) -> None:
    """out[i, h] = softmax(scale * q[i, h] . k[: n_past + i + 1, h']) . v[: n_past + i + 1, h'].

    h' = h / (n_head / n_head_kv), rounded down. k, v: float16 or float32 [n_ctx, n_head_kv * head width].
    Values are added by fma in ascending position.
    """
    n = len(q)
    queries = q.reshape(n, n_head, -1)
    group = n_head // n_head_kv
    for i in range(n):
        n_kv = n_past + i + 1
        keys, values = (
            cache[:n_kv].astype(np.float32).reshape(n_kv, n_head_kv, -1).repeat(group, axis=1)
            for cache in (k, v)
        )
        scores = np.float32(scale) * exact.dot(keys, queries[i])  # [n_kv, n_head]
        weights = softmax(scores.T)
        total = np.zeros(values.shape[1:], np.float32)
        for j in range(n_kv):
            total = fma(weights[:, j, None], values[j], total)
        out[i] = total.reshape(-1)


@quiet
def moe_topk(
    logits: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    gating: int,
    normalize: int,
    weights_scale: float,
) -> None:
    """The k experts of each token, the likeliest first, of equal ones the lowest.

    The logits become probabilities in place. With NaN among them the choice may differ from the kernel's.
    logits: [rows, n_expert]; ids: int32 [rows, k]; weights: [rows, k].
    """
    if gating == Gating.SOFTMAX:
        logits[:] = softmax(logits)
    elif gating == Gating.SIGMOID:
        logits[:] = ONE / (ONE + exact.exp(-logits))
    k = ids.shape[1]
    ids[:] = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    check = exact.sum(logits)
    chosen = np.take_along_axis(logits, ids, axis=1) + (check - check)[:, None]
    if gating == Gating.SOFTMAX_WEIGHT:
        chosen = softmax(chosen)
    total = np.ones(len(logits), np.float32)
    if normalize:
        total = np.zeros(len(logits), np.float32)
        for j in range(k):
            total = total + chosen[:, j]
        total = np.maximum(total, SMALLEST_SUM)
    weights[:] = chosen / total[:, None] * np.float32(weights_scale)


def expert_rows(
    ids: np.ndarray,
    used: np.ndarray,
    n_used: np.ndarray,
    first: np.ndarray,
    counts: np.ndarray,
    token: np.ndarray,
    place: np.ndarray,
) -> None:
    """Sort places by expert. ids, place: int32 [rows, k]; the others are flat, see structs.EXPERT_ROWS.

    counts is scratch: for each expert the place behind its last one.
    """
    chosen = ids.reshape(-1)
    order = np.argsort(chosen, kind="stable")
    n_expert = len(counts)
    ends = np.cumsum(np.bincount(chosen, minlength=n_expert))
    found = np.unique(chosen)
    used[: len(found)] = found
    n_used[0] = len(found)
    first[0], first[1 : len(found) + 1] = 0, ends[found]
    counts[:] = ends
    token[: len(order)] = order // ids.shape[1]
    place[:] = np.argsort(order, kind="stable").reshape(ids.shape)


@quiet
def swiglu(gate: np.ndarray, up: np.ndarray) -> None:
    """gate = silu(gate) * up, in place."""
    gate[:] = exact.silu(gate) * up


@quiet
def moe_sum(
    x: np.ndarray, place: np.ndarray, weights: np.ndarray, residual: np.ndarray, out: np.ndarray
) -> None:
    """out[i] = residual[i] + sum over j of weights[i, j] * x[place[i, j]], by fma in the router's order."""
    total = np.zeros_like(residual)
    for j in range(place.shape[1]):
        total = fma(weights[:, j, None], x[place[:, j]], total)
    out[:] = total + residual
