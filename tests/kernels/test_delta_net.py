"""The reference of the gated delta net's ops: against the formulas in float64, and in chunks."""

import numpy as np
import pytest

from gguf_moe_kernels.ref import delta_net


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def test_l2_norm_of_the_first_heads(rng):
    x = normal(rng, 3, 100)
    before = x.astype(float)
    delta_net.l2_norm(x, 2, 40, 0.5)
    heads = before[:, :80].reshape(3, 2, 40)
    expected = heads / np.sqrt((heads**2).sum(axis=2, keepdims=True) + 0.5)
    np.testing.assert_allclose(x[:, :80], expected.reshape(3, 80), rtol=1e-5)
    np.testing.assert_array_equal(x[:, 80:], before[:, 80:])


def convolve(x, weight, chunks):
    state, out, start = np.full((weight.shape[1] - 1, x.shape[1]), np.nan, np.float32), np.empty_like(x), 0
    for n in chunks:
        part = slice(start, start + n)
        delta_net.ssm_conv(x[part], weight, state, out[part], start)
        start += n
    return out, state


@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (2, 5, 2)])
def test_ssm_conv(rng, chunks, assert_same_bits):
    x, weight = normal(rng, 9, 6), normal(rng, 6, 4)
    out, state = convolve(x, weight, chunks)
    padded = np.concatenate([np.zeros((3, 6)), x])
    total = sum(padded[j : j + 9] * weight[:, j] for j in range(4))
    np.testing.assert_allclose(out, total / (1 + np.exp(-total)), rtol=1e-4, atol=1e-6)
    assert_same_bits(state, x[-3:])
    assert_same_bits(out, convolve(x, weight, (9,))[0])


def recur(q, k, v, decay, beta, chunks):
    state, out, start = np.full((2, 8, 8), np.nan, np.float32), np.empty_like(v), 0
    for n in chunks:
        part = slice(start, start + n)
        inputs = (a[part] for a in (q, k, v, decay, beta))
        delta_net.gated_delta_net(*inputs, state, out[part], start)
        start += n
    return out


@pytest.mark.parametrize("chunks", [(7,), (1,) * 7, (3, 4)])
def test_gated_delta_net(rng, chunks, assert_same_bits):
    q, k, v = (normal(rng, 7, 2, 8) / np.float32(3) for _ in range(3))
    decay, beta = (rng.random((7, 2), np.float32) for _ in range(2))
    out = recur(q, k, v, decay, beta, chunks)
    state = np.zeros((2, 8, 8))
    for i in range(7):
        for h in range(2):
            s = state[h] * decay[i, h]
            state[h] = s + np.outer((v[i, h] - s @ k[i, h]) * beta[i, h], k[i, h])
            np.testing.assert_allclose(out[i, h], state[h] @ q[i, h] / np.sqrt(8), rtol=1e-4, atol=1e-5)
    assert_same_bits(out, recur(q, k, v, decay, beta, (7,)))
