"""Attention of one new token per row over that row's own part of the KV cache, as a Triton kernel.

PyTorch's attention reads the whole cache and masks it; this one stops at each row's position.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attend(
    q, k, v, pos, out, n_ctx, N_KV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr
):
    """One row and key/value head: softmax(q k^T) v, over blocks of 64 positions."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    n = tl.load(pos + row) + 1
    # The matrix unit wants 16 queries; GROUP of them exist.
    group = tl.arange(0, 16)
    d = tl.arange(0, D)
    at = (row * N_KV + head) * GROUP * D + group[:, None] * D + d
    queries = tl.load(q + at, mask=group[:, None] < GROUP, other=0.0)
    top = tl.full((16,), -float("inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    result = tl.zeros((16, D), tl.float32)
    for start in range(0, n, 64):
        columns = start + tl.arange(0, 64)
        places = (row * n_ctx + columns[:, None]) * N_KV * D + head * D + d
        keys = tl.load(k + places, mask=columns[:, None] < n, other=0.0)
        values = tl.load(v + places, mask=columns[:, None] < n, other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * SCALE
        scores = tl.where(columns < n, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
        top = new_top
    tl.store(out + at, (result / total[:, None]).to(q.dtype.element_ty), mask=group[:, None] < GROUP)


def attention(q: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> Tensor:
    """q is [batch, n_head_kv, group, d], k and v are [batch, n_ctx, n_head_kv, d]; the result is like q."""
    q = q.contiguous()
    batch, n_kv, group, d = q.shape
    out = torch.empty_like(q)
    _attend[(batch, n_kv)](q, k, v, pos, out, k.shape[1], N_KV=n_kv, GROUP=group, D=d, SCALE=d**-0.5)
    return out
