"""Ops of gated delta nets: the CUDA kernels against the reference, bit for bit, in steps of several sizes."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.ref import delta_net

ROWS = 7
CHUNKS = [(7,), (1,) * 7, (2, 4, 1)]
ALONE = {"n_ctx": 100, "cells": 0}


def parts_of(chunks):
    """(first row, rows) of each chunk."""
    ends = np.cumsum(chunks)
    return [(int(end - n), slice(int(end - n), int(end))) for end, n in zip(ends, chunks, strict=True)]


@pytest.mark.parametrize("n", [16, 128, 33])
def test_l2_norm(rng, call, assert_same_bits, n):
    x = normal(rng, 3, 5 * n)
    expected = x.copy()
    delta_net.l2_norm(expected, 4, n, 1e-6)
    call("delta_net.l2_norm", structs.L2_NORM, x=x, width=5 * n, n=n, n_head=4, eps=1e-6, rows=3)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_ssm_conv(rng, call, assert_same_bits, chunks):
    x, weight = normal(rng, ROWS, 300), normal(rng, 300, 4)
    state, out = np.full((2, 3, 300), np.nan, np.float32), np.zeros((2, ROWS, 300), np.float32)
    delta_net.ssm_conv(x, weight, state[0], out[0], 0, 100)
    sizes = {"n": 300, "d_conv": 4, **ALONE}
    for first, part in parts_of(chunks):
        arrays = {"x": x[part], "weight": weight, "state": state[1], "out": out[1][part]}
        call("delta_net.ssm_conv", structs.SSM_CONV, **arrays, **sizes, n_past=first, rows=len(x[part]))
    assert_same_bits(out[1], out[0])
    assert_same_bits(state[1], state[0])


def test_delta_net_gates(rng, call, assert_same_bits):
    alpha, beta, dt, a = (
        12 * normal(rng, 3, 300),
        normal(rng, 3, 300),
        normal(rng, 300),
        -rng.random(300, np.float32),
    )
    alpha[0, :3] = np.nan, -200, 200
    expected = alpha.copy(), beta.copy()
    delta_net.delta_net_gates(*expected, a, dt)
    call(
        "delta_net.delta_net_gates",
        structs.DELTA_NET_GATES,
        alpha=alpha,
        beta=beta,
        a=a,
        dt=dt,
        n=300,
        rows=3,
    )
    assert_same_bits(alpha, expected[0])
    assert_same_bits(beta, expected[1])


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(("n", "heads_per_key"), [(16, 2), (128, 1), (40, 2)])
def test_gated_delta_net(rng, call, assert_same_bits, chunks, n, heads_per_key):
    qkv = normal(rng, ROWS, 8 * n) / np.float32(np.sqrt(n))
    decay, beta = (rng.random((ROWS, 4), np.float32) for _ in range(2))
    state, out = np.full((2, 4 * n, n), np.nan, np.float32), np.zeros((2, ROWS, 4 * n), np.float32)
    heads = {"n_head_k": 2, "heads_per_key": heads_per_key}
    delta_net.gated_delta_net(qkv, decay, beta, state[0], out[0], 0, 100, **heads)
    for first, part in parts_of(chunks):
        arrays = {"qkv": qkv[part], "decay": decay[part], "beta": beta[part], "out": out[1][part]}
        sizes = {"n": n, "n_head": 4, "n_past": first, "rows": len(qkv[part]), **heads, **ALONE}
        call("delta_net.gated_delta_net", structs.GATED_DELTA_NET, **arrays, state=state[1], **sizes)
    assert_same_bits(out[1], out[0])
    assert_same_bits(state[1], state[0])
