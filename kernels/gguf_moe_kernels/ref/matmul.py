"""Weights times activations in the defined order: exact inside a block, then one float32 sum over blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, exact
from gguf_moe_kernels.ref.quants import FLOAT_TYPES, dequantize, unpack


def tile(qtype: GGMLType, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight . x of every row with every row: u8 [n_out, row_size], x [rows, ...] -> float32 [rows, n_out].

    x is in the format that ACTIVATION_FORMAT has for the type: float32 [rows, n], or u8 [rows, row_size].
    """
    if qtype in FLOAT_TYPES:
        return exact.dot(dequantize(qtype, weight), x[:, None, :])
    return _dot_blocks(qtype, weight, x)


@exact.quiet
def _dot_blocks(qtype: GGMLType, weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The letters of einsum: t rows of x, r rows of the weight, b blocks, g groups, j inside a group."""
    w = unpack(qtype, weight)
    x = activations.planes(ACTIVATION_FORMAT[qtype], rows, w.q[0].size)
    d = x.d[:, None, :]
    by_group = np.einsum("rbgj,tbgj->trbg", w.q, x.q.reshape(len(rows), *w.q.shape[1:]))
    if w.d.ndim == w.scale.ndim:
        by_group = by_group.astype(np.float32)
        return exact.sum_blocks([(w.d[..., g] * d, by_group[..., g]) for g in range(w.d.shape[-1])])
    totals = np.einsum("trbg,rbg->trb", by_group, w.scale)
    terms = [(w.d * d, totals.astype(np.float32))]
    if w.dmin is not None and w.minimum is not None:
        if ACTIVATION_FORMAT[qtype] is ActivationFormat.Q8_1:
            terms.append((-w.dmin, x.sums[:, None, :]))
        else:
            n_blocks, n_groups = w.minimum.shape[1:]
            sums = x.sums.reshape(len(rows), n_blocks, n_groups, 16 // n_groups).sum(axis=-1)
            minimums = np.einsum("tbg,rbg->trb", sums, w.minimum)
            terms.append((w.dmin * -d, minimums.astype(np.float32)))
    return exact.sum_blocks(terms)


@exact.quiet
def matmul(
    qtype: GGMLType,
    weight: np.ndarray,
    x: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> None:
    """out[i] = weight . x[i] (+ bias) (+ residual[i]). x as in `tile`; the others are float32."""
    result = tile(qtype, weight, x)
    if bias is not None:
        result = result + bias
    if residual is not None:
        result = result + residual
    out[:] = result


def matmul_heads(qtype: GGMLType, weight: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out[i, h] = weight[h] . x[i, h]. weight: u8 [n_head, n_out, row_size]; x: [rows, n_head, ...] in the
    type's format; out: float32 [rows, n_head, n_out]."""
    for h, matrix in enumerate(weight):
        out[:, h] = tile(qtype, matrix, x[:, h])


def matmul_id(
    qtypes: Sequence[GGMLType],
    weights: Sequence[np.ndarray],
    x: Mapping[ActivationFormat, np.ndarray],
    out: np.ndarray,
    used: np.ndarray,
    n_used: int,
    first: np.ndarray,
    x_index: np.ndarray | None = None,
) -> None:
    """For each place p of each used expert: out[p] = weights[expert] . x[x_index[p]]; x[p] without an index.

    weights: u8 [n_out, row_size] of each expert; x: the activations in every format that their types need;
    used, n_used, first: see `expert_rows`; out: float32 [places, n_out].
    """
    for u, expert in enumerate(used[:n_used]):
        places = slice(first[u], first[u + 1])
        qtype = qtypes[expert]
        rows = places if x_index is None else x_index[places]
        out[places] = tile(qtype, weights[expert], x[ACTIVATION_FORMAT[qtype]][rows])
