"""Ops of gated delta nets (llama.cpp: delta-net-base.cpp, ggml_ssm_conv). States are updated in place.

With n_past 0 a state counts as zero, whatever it holds.
"""

from __future__ import annotations

import numpy as np

from gguf_moe_kernels.ref import exact
from gguf_moe_kernels.ref.exact import ONE, fma, quiet


@quiet
def l2_norm(x: np.ndarray, n_head: int, n: int, eps: float) -> None:
    """x[i, h] /= sqrt(sum(x[i, h]^2) + eps), in place, for the first n_head parts of n elements of a row."""
    heads = x[:, : n_head * n].reshape(len(x), n_head, n)
    factor = ONE / np.sqrt(exact.dot(heads, heads) + np.float32(eps))
    x[:, : n_head * n] = (heads * factor[..., None]).reshape(len(x), -1)


@quiet
def ssm_conv(x: np.ndarray, weight: np.ndarray, state: np.ndarray, out: np.ndarray, n_past: int) -> None:
    """out[i, c] = silu(sum over j of weight[c, j] * input[i + j, c]), by fma in ascending j.

    input is the state, [d_conv - 1, n], and then x, [rows, n]; its end is the next state.
    weight: [n, d_conv].
    """
    if n_past == 0:
        state[:] = 0
    inputs, rows = np.concatenate([state, x]), len(x)
    total = np.zeros_like(x)
    for j in range(weight.shape[1]):
        total = fma(weight[:, j], inputs[j : j + rows], total)
    out[:] = exact.silu(total)
    state[:] = inputs[rows:]


@quiet
def gated_delta_net(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray,
    state: np.ndarray, out: np.ndarray, n_past: int,
) -> None:  # fmt: skip
    """For each token: S *= decay; S += k (beta * (v - S k)); out = S q / sqrt(n).

    q, k, v, out: [rows, n_head, n]; decay, beta: [rows, n_head]; state S: [n_head, n (of v), n (of k)].
    """
    if n_past == 0:
        state[:] = 0
    scale = ONE / np.sqrt(np.float32(k.shape[-1]))
    for i in range(len(v)):
        decayed = state * decay[i, :, None, None]
        change = (v[i] - exact.dot(decayed, k[i, :, None])) * beta[i, :, None]
        state[:] = fma(k[i, :, None], change[..., None], decayed)
        out[i] = exact.dot(state, q[i, :, None]) * scale
