"""The ops that touch activations only. Each writes into its outputs, under the names that tasks use.

Arrays have one row for each token of the step, float32 unless said; options are numbers.
"""

from __future__ import annotations

import numpy as np

from gguf_moe_kernels.constants import OAI_ALPHA, OAI_LIMIT, SMALLEST_SUM
from gguf_moe_kernels.gating import Gating
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import exact
from gguf_moe_kernels.ref.exact import ONE, TWO, fma, quiet
from gguf_moe_kernels.ref.quants import dequantize


def get_rows(qtype: GGMLType, weight: np.ndarray, tokens: np.ndarray, out: np.ndarray) -> None:
    """out[i] = row tokens[i] of weight. weight: u8 [n_rows, row_size]; tokens: int32 [rows]."""
    out[:] = dequantize(qtype, weight[tokens])


@quiet
def rms_norm(
    x: np.ndarray,
    out: np.ndarray,
    eps: float,
    n_head: int = 1,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> None:
    """out[i, h] = x[i, h] / sqrt(mean(x[i, h]^2) + eps) (* weight) (+ bias), for n_head parts of a row."""
    parts = x.reshape(len(x), n_head, x.shape[1] // n_head)
    mean = exact.dot(parts, parts) / np.float32(parts.shape[2])
    factor = ONE / np.sqrt(mean + np.float32(eps))
    normed = parts * factor[..., None]
    if weight is not None:
        normed = normed * weight
    out[:] = (normed if bias is None else normed + bias).reshape(out.shape)


@quiet
def scale(x: np.ndarray, out: np.ndarray, factor: float, residual: np.ndarray | None = None) -> None:
    """out = factor * x (+ residual)."""
    scaled = np.float32(factor) * x
    out[:] = scaled if residual is None else scaled + residual


@quiet
def scale_rows(x: np.ndarray, factors: np.ndarray) -> None:
    """x[i] *= factors[i], in place. factors: [rows, 1]."""
    x *= factors


def concat(a: np.ndarray, b: np.ndarray, out: np.ndarray, n_head: int, n_b: int) -> None:
    """out[i, h] = a[i, h] and behind it the last n_b elements of b[i, h], for the n_head parts of a row."""
    a, b = (x.reshape(len(x), n_head, -1) for x in (a, b))
    out[:] = np.concatenate([a, b[..., b.shape[2] - n_b :]], axis=2).reshape(out.shape)


def parts(
    x: np.ndarray, out: np.ndarray, n_head: int, n: int, first: int, stride: int, out_first: int = 0
) -> None:
    """out[i, out_first + h * n + j] = x[i, first + h * stride + j], for n_head parts of n of a row."""
    places = first + stride * np.arange(n_head)[:, None] + np.arange(n)
    out[:, out_first : out_first + n_head * n] = x[:, places.reshape(-1)]


@quiet
def rope(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    n_head: int,
    n_rot: int,
    pair_stride: int,
    first: int = 0,
) -> None:
    """Rotate n_rot elements of each of n_head heads, from `first` on, in place. cos, sin: [rows, n_rot / 2].

    pair_stride 1: neighbours are a pair; n_rot / 2: an element of the first half with one of the second.
    """
    heads = x.reshape(len(x), n_head, -1)[..., first:]
    i = np.arange(n_rot // 2)
    one = 2 * i if pair_stride == 1 else i
    other = one + pair_stride
    x0, x1 = heads[..., one], heads[..., other]
    c, s = cos[:, None, :], sin[:, None, :]
    heads[..., one] = fma(x0, c, -(x1 * s))
    heads[..., other] = fma(x0, s, x1 * c)


@quiet
def softmax(x: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """exp(x - largest) / sum over the last axis; `sinks` are one more element of each row, added last."""
    largest = x.max(axis=-1)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    e = exact.exp(x - largest[..., None])
    total = exact.sum(e)
    if sinks is not None:
        total = total + exact.exp(sinks - largest)
    return e * (ONE / total)[..., None]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return ONE / (ONE + exact.exp(-x))


@quiet
def moe_topk(
    logits: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    gating: int,
    normalize: int,
    weights_scale: float,
    n_group: int = 1,
    n_group_used: int = 1,
    selection: np.ndarray | None = None,
    group_scores: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> None:
    """The k experts of each token, the likeliest first, of equal ones the lowest.

    The logits become probabilities in place. What is chosen by is `selection`: the probabilities, with the
    bias (float32 [n_expert]) added and all but the best n_group_used of n_group groups at -infinity; the
    weights are always made from the probabilities alone. Without bias and groups selection is None. With NaN
    among the logits the choice may differ from the kernel's. `given` ids are taken instead of chosen ones.
    logits, selection: [rows, n_expert]; group_scores: [rows, n_group]; ids, given: int32, weights: [rows, k].
    """
    if gating == Gating.SOFTMAX:
        logits[:] = softmax(logits)
    elif gating == Gating.SIGMOID:
        logits[:] = sigmoid(logits)
    if selection is None:
        selection = logits
    else:
        selection[:] = logits if bias is None else logits + bias
    if group_scores is not None:
        mask_groups(selection, group_scores, n_group_used)
    k = ids.shape[1]
    ids[:] = np.argsort(-selection, axis=1, kind="stable")[:, :k] if given is None else given
    check = exact.sum(logits)
    chosen = np.take_along_axis(logits, ids, axis=1) + (check - check)[:, None]
    if gating == Gating.SOFTMAX_WEIGHT:
        chosen = softmax(chosen)
    elif gating == Gating.SIGMOID_WEIGHT:
        chosen = sigmoid(chosen)
    total = np.ones(len(logits), np.float32)
    if normalize:
        total = np.zeros(len(logits), np.float32)
        for j in range(k):
            total = total + chosen[:, j]
        total = np.maximum(total, SMALLEST_SUM)
    weights[:] = chosen / total[:, None] * np.float32(weights_scale)


def mask_groups(selection: np.ndarray, group_scores: np.ndarray, n_group_used: int) -> None:
    """Put -infinity for the experts outside the best n_group_used groups, in place.

    A group's score is the sum of its two largest; of equal groups the first counts as better.
    selection: [rows, n_expert]; group_scores: [rows, n_group], written.
    """
    rows, n_group = group_scores.shape
    groups = selection.reshape(rows, n_group, -1)
    largest = np.sort(groups, axis=2)
    group_scores[:] = largest[..., -1] + largest[..., -2]
    order = np.argsort(-group_scores, axis=1, kind="stable")
    for row, left_out in enumerate(order[:, n_group_used:]):
        groups[row, left_out] = -np.inf


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
def swiglu_oai(gate: np.ndarray, up: np.ndarray) -> None:
    """gate = g * sigmoid(1.702 * g) * (u + 1), in place; g = min(gate, 7), and u is up within -7 and 7."""
    g, u = np.minimum(gate, OAI_LIMIT), np.clip(up, -OAI_LIMIT, OAI_LIMIT)
    gate[:] = g / (ONE + exact.exp(-(OAI_ALPHA * g))) * (u + ONE)


@quiet
def geglu(gate: np.ndarray, up: np.ndarray) -> None:
    """gate = gelu(gate) * up, in place."""
    gate[:] = exact.gelu(gate) * up


@quiet
def softcap(x: np.ndarray, cap: float) -> None:
    """x = cap * tanh(x / cap), in place; tanh(y) is 1 - 2 / (1 + e^2y)."""
    limit = np.float32(cap)
    x[:] = limit * (ONE - TWO / (ONE + exact.exp(x * (TWO / limit))))


@quiet
def sigmoid_mul(x: np.ndarray, gate: np.ndarray) -> None:
    """x *= sigmoid(gate), in place."""
    x *= sigmoid(gate)


@quiet
def add_id(x: np.ndarray, bias: np.ndarray, ids: np.ndarray, place: np.ndarray) -> None:
    """x[place[i, j]] += bias[ids[i, j]], but for places of -1.

    ids, place: int32 [rows, k]; bias: [n_expert, n].
    """
    here = place >= 0
    x[place[here]] += bias[ids[here]]


@quiet
def scale_id(x: np.ndarray, scale: np.ndarray, ids: np.ndarray, place: np.ndarray) -> None:
    """x[place[i, j]] *= scale[ids[i, j]], but for places of -1. ids, place: int32 [rows, k]."""
    here = place >= 0
    x[place[here]] *= scale[ids[here], None]


@quiet
def weigh(x: np.ndarray, place: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """out[place[i, j]] = weights[i, j] * x[i], but for places of -1. place: int32, weights: [rows, k]."""
    here = place >= 0
    out[place[here]] = (weights[..., None] * x[:, None])[here]


@quiet
def moe_sum(
    x: np.ndarray,
    place: np.ndarray,
    weights: np.ndarray | None,
    out: np.ndarray,
    shared: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> None:
    """out[i] = sum over j of weights[i, j] * x[place[i, j]] (+ shared[i]) (+ residual[i]). No weights are 1.

    The sum is by fma in the router's order; shared and residual are added to it, one after the other.
    """
    total = np.zeros_like(out)
    if weights is None:
        weights = np.ones(place.shape, np.float32)
    for j in range(place.shape[1]):
        total = fma(weights[:, j, None], x[place[:, j]], total)
    for addend in (shared, residual):
        if addend is not None:
            total = total + addend
    out[:] = total


@quiet
def shexp_gate(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """out[i] = sigmoid(weight . x[i]) * out[i], in place. x: [rows, n_in]; weight: [n_in]."""
    out[:] = sigmoid(exact.dot(x, weight))[:, None] * out
