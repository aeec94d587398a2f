"""Ops of gated delta nets (llama.cpp: delta-net-base.cpp, ggml_ssm_conv). States are updated in place.

At position 0 a state counts as zero, whatever it holds. Each sequence has its own; `cells`, as for attention,
says which tokens are whose, and sequence s begins at cell s * n_ctx.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from gguf_moe_kernels.ref import exact
from gguf_moe_kernels.ref.exact import ONE, fma, quiet
from gguf_moe_kernels.ref.kv_cache import own_cells
from gguf_moe_kernels.ref.ops import sigmoid


@quiet
def l2_norm(x: np.ndarray, n_head: int, n: int, eps: float) -> None:
    """x[i, h] /= sqrt(sum(x[i, h]^2) + eps), in place, for the first n_head parts of n elements of a row."""
    heads = x[:, : n_head * n].reshape(len(x), n_head, n)
    factor = ONE / np.sqrt(exact.dot(heads, heads) + np.float32(eps))
    x[:, : n_head * n] = (heads * factor[..., None]).reshape(len(x), -1)


@quiet
def ssm_conv(
    x: np.ndarray,
    weight: np.ndarray,
    state: np.ndarray,
    out: np.ndarray,
    n_past: int,
    n_ctx: int,
    cells: np.ndarray | None = None,
) -> None:
    """out[i, c] = silu(sum over j of weight[c, j] * input[i + j, c]), by fma in ascending j.

    For each sequence, input is its state, [d_conv - 1, n], and then its rows of x; the end is its next state.
    weight: [n, d_conv]; state: [sequences * (d_conv - 1), n].
    """
    states = state.reshape(-1, weight.shape[1] - 1, state.shape[1])
    for sequence, is_new, part in _sequences(len(x), n_past, n_ctx, cells):
        own = np.zeros_like(states[0]) if is_new else states[sequence]
        inputs, rows = np.concatenate([own, x[part]]), part.stop - part.start
        total = np.zeros_like(x[part])
        for j in range(weight.shape[1]):
            total = fma(weight[:, j], inputs[j : j + rows], total)
        out[part] = exact.silu(total)
        states[sequence] = inputs[rows:]


def _sequences(
    n: int, n_past: int, n_ctx: int, cells: np.ndarray | None
) -> Iterator[tuple[int, bool, slice]]:
    """The sequences of a step: number, whether it begins here, and its rows."""
    found = own_cells(n, n_past, cells)
    starts = np.flatnonzero(np.diff(found[:, 0], prepend=-1)).tolist()
    for start, end in itertools.pairwise([*starts, n]):
        yield int(found[start, 0]) // n_ctx, bool(found[start, 1] == 0), slice(start, end)


@quiet
def delta_net_gates(alpha: np.ndarray, beta: np.ndarray, a: np.ndarray, dt: np.ndarray) -> None:
    """alpha becomes the decay exp(a * softplus(alpha + dt)), beta becomes sigmoid(beta), in place.

    alpha, beta: [rows, n_head]; a, dt: [n_head].
    """
    alpha[:] = exact.exp(a * exact.softplus(alpha + dt))
    beta[:] = sigmoid(beta)


@quiet
def gated_delta_net(
    qkv: np.ndarray,
    decay: np.ndarray,
    beta: np.ndarray,
    state: np.ndarray,
    out: np.ndarray,
    n_past: int,
    n_ctx: int,
    n_head_k: int,
    heads_per_key: int,
    cells: np.ndarray | None = None,
) -> None:
    """For each token and head: S *= decay; S += k (beta * (v - S k)); out = S q / sqrt(n).

    A row of qkv has n_head_k heads of n elements of q, as many of k, and n_head of v. Head h has the q and
    the k of head h / heads_per_key % n_head_k. decay, beta: [rows, n_head]; out: [rows, n_head * n]; the
    states S: [sequences * n_head * n (of v), n (of k)].
    """
    n_head, n = beta.shape[1], state.shape[1]
    heads, states = qkv.reshape(len(qkv), -1, n), state.reshape(-1, n_head, n, n)
    of_key = np.arange(n_head) // heads_per_key % n_head_k
    q, k, v = heads[:, of_key], heads[:, n_head_k + of_key], heads[:, 2 * n_head_k :]
    scale = ONE / np.sqrt(np.float32(n))
    for sequence, is_new, part in _sequences(len(qkv), n_past, n_ctx, cells):
        own = states[sequence]
        if is_new:
            own[:] = 0
        for i in range(part.start, part.stop):
            decayed = own * decay[i, :, None, None]
            change = (v[i] - exact.dot(decayed, k[i, :, None])) * beta[i, :, None]
            own[:] = fma(k[i, :, None], change[..., None], decayed)
            out[i] = (exact.dot(own, q[i, :, None]) * scale).reshape(-1)
