"""The KV cache: rows go in, and attention reads them.

A cache is float16 or float32 [n_ctx, n], or u8 [n_ctx, 34 * n / 32] with rows in blocks of Q8_0.
"""

from __future__ import annotations

import numpy as np

from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, exact
from gguf_moe_kernels.ref.exact import fma, quiet
from gguf_moe_kernels.ref.ops import softmax
from gguf_moe_kernels.ref.quants import dequantize


@quiet
def kv_store(x: np.ndarray, cache: np.ndarray, n_past: int, cells: np.ndarray | None = None) -> None:
    """cache[n_past + i] = x[i], or where `cells` says.

    cells: int32 [rows, 2], for each token the first cell of its sequence and its position there.
    """
    rows = activations.q8_0_blocks(x) if cache.dtype == np.uint8 else x
    cache[own_cells(len(x), n_past, cells).sum(axis=1)] = rows


def own_cells(n: int, n_past: int, cells: np.ndarray | None) -> np.ndarray:
    """First cell and position of n tokens, int [n, 2]."""
    if cells is not None:
        return cells[:n]
    return np.stack([np.zeros(n, np.int64), n_past + np.arange(n)], axis=1)


def elements(rows: np.ndarray) -> np.ndarray:
    """What rows of a cache stand for: float32 [rows, n]."""
    return dequantize(GGMLType.Q8_0, rows) if rows.dtype == np.uint8 else rows.astype(np.float32)


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
    n_swa: int = 0,
    chunked: int = 0,
    sinks: np.ndarray | None = None,
    cells: np.ndarray | None = None,
) -> None:
    """out[i, h] = softmax(scale * q[i, h] . k[first : n_past + i + 1, h']) . v[first : n_past + i + 1, h'].

    h' = h / (n_head / n_head_kv), rounded down. k, v: caches of n_head_kv * head width elements a row.
    With `cells`, as for kv_store, the cells seen are those of the token's sequence up to its own. A token
    sees the last n_swa positions, its own among them; with n_swa 0 it sees all; with `chunked`
    those of its own stretch of n_swa. A sink, one number for a
    head, takes part in the softmax as a score does, but has no value. Values are added by fma in ascending
    position. The heads of v are as wide as those of out; what is behind them in a row is left.
    """
    n = len(q)
    queries = q.reshape(n, n_head, -1)
    group = n_head // n_head_kv
    v_width = out.shape[1] // group
    for i, (start, position) in enumerate(own_cells(n, n_past, cells)):
        end = start + position + 1
        first = start
        if n_swa:
            first = start + position // n_swa * n_swa if chunked else max(start, end - n_swa)
        n_kv = end - first
        rows = elements(k[first:end]), elements(v[first:end])[:, :v_width]
        keys, values = (x.reshape(n_kv, n_head_kv, -1).repeat(group, axis=1) for x in rows)
        scores = np.float32(scale) * exact.dot(keys, queries[i])  # [n_kv, n_head]
        weights = softmax(scores.T, sinks)
        total = np.zeros(values.shape[1:], np.float32)
        for j in range(n_kv):
            total = fma(weights[:, j, None], values[j], total)
        out[i] = total.reshape(-1)
