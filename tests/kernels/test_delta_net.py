"""Ops of gated delta nets: the reference against formulas in float64, the kernels against the reference."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.ref import delta_net

CHUNKS = [(9,), (1,) * 9, (2, 5, 2)]
ROWS = 9
N_CTX = 100
ALONE = {"n_ctx": N_CTX, "cells": None}
CELLS = np.array([[200, 0], [200, 1], [0, 5], [0, 6], [0, 7], [0, 8], [100, 0], [300, 2], [300, 3]], np.int32)
"""The rows of four sequences, two of which begin here."""


def parts_of(chunks):
    """(first row, rows) of each chunk."""
    ends = np.cumsum(chunks)
    return [(end - n, slice(end - n, end)) for end, n in zip(ends.tolist(), chunks, strict=True)]


@pytest.fixture(params=["ref", "kernel"])
def run(request, call_op):
    """run("ssm_conv", **arguments): the op by the reference or by the kernel, which needs more sizes."""
    if request.param == "ref":
        return lambda name, sizes, **arguments: getattr(delta_net, name)(**arguments)

    def kernel(name, sizes, **arguments):
        if "cells" in arguments and arguments["cells"] is None:
            arguments["cells"] = 0
        call_op(f"delta_net.{name}", getattr(structs, name.upper()), **arguments, **sizes)

    return kernel


def test_l2_norm_of_the_first_heads(rng, run):
    x = normal(rng, 3, 100)
    before = x.astype(float)
    run("l2_norm", {"width": 100, "rows": 3}, x=x, n_head=2, n=40, eps=0.5)
    heads = before[:, :80].reshape(3, 2, 40)
    expected = heads / np.sqrt((heads**2).sum(axis=2, keepdims=True) + 0.5)
    np.testing.assert_allclose(x[:, :80], expected.reshape(3, 80), rtol=1e-5)
    np.testing.assert_array_equal(x[:, 80:], before[:, 80:])


def convolve(run, x, weight, chunks):
    state, out = np.full((weight.shape[1] - 1, x.shape[1]), np.nan, np.float32), np.empty_like(x)
    for first, part in parts_of(chunks):
        sizes = {"n": x.shape[1], "d_conv": weight.shape[1], "rows": part.stop - part.start}
        run("ssm_conv", sizes, x=x[part], weight=weight, state=state, out=out[part], n_past=first, **ALONE)
    return out, state


@pytest.mark.parametrize("chunks", CHUNKS)
def test_ssm_conv(rng, run, chunks, assert_same_bits):
    x, weight = normal(rng, ROWS, 70), normal(rng, 70, 4)
    out, state = convolve(run, x, weight, chunks)
    padded = np.concatenate([np.zeros((3, 70)), x])
    total = sum(padded[j : j + ROWS] * weight[:, j] for j in range(4))
    np.testing.assert_allclose(out, total / (1 + np.exp(-total)), rtol=1e-4, atol=1e-6)
    assert_same_bits(state, x[-3:])
    assert_same_bits(out, convolve(lambda name, _, **a: delta_net.ssm_conv(**a), x, weight, (ROWS,))[0])


def test_delta_net_gates(rng, run):
    alpha, beta, dt = 8 * normal(rng, ROWS, 6), normal(rng, ROWS, 6), normal(rng, 6)
    a = -rng.random(6, np.float32)
    decay = np.exp(a * np.logaddexp(0.0, (alpha + dt).astype(float)))
    factor = 1 / (1 + np.exp(-beta.astype(float)))
    run("delta_net_gates", {"n": 6, "rows": ROWS}, alpha=alpha, beta=beta, a=a, dt=dt)
    np.testing.assert_allclose(alpha, decay, rtol=1e-5)
    np.testing.assert_allclose(beta, factor, rtol=1e-5)


def recur(run, qkv, decay, beta, n_head_k, heads_per_key, chunks):
    n_head = beta.shape[1]
    n = qkv.shape[1] // (2 * n_head_k + n_head)
    state, out = np.full((n_head * n, n), np.nan, np.float32), np.empty((len(qkv), n_head * n), np.float32)
    for first, part in parts_of(chunks):
        sizes = {"n": n, "n_head": n_head, "rows": part.stop - part.start}
        inputs = {"qkv": qkv[part], "decay": decay[part], "beta": beta[part]}
        heads = {"n_head_k": n_head_k, "heads_per_key": heads_per_key}
        run("gated_delta_net", sizes, **inputs, **heads, state=state, out=out[part], n_past=first, **ALONE)
    return out, state


@pytest.mark.parametrize(("heads_per_key", "of_key"), [(2, [0, 0, 1, 1]), (1, [0, 1, 0, 1])])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("n", [8, 40])
def test_gated_delta_net(rng, run, chunks, heads_per_key, of_key, n, assert_same_bits):
    qkv = normal(rng, ROWS, 8 * n) / np.float32(np.sqrt(n))
    decay, beta = (rng.random((ROWS, 4), np.float32) for _ in range(2))
    out, state = recur(run, qkv, decay, beta, 2, heads_per_key, chunks)
    heads, expected = qkv.astype(float).reshape(ROWS, 8, n), np.zeros((4, n, n))
    for i in range(ROWS):
        for h in range(4):
            q, k, v = heads[i, of_key[h]], heads[i, 2 + of_key[h]], heads[i, 4 + h]
            s = expected[h] * decay[i, h]
            expected[h] = s + np.outer((v - s @ k) * beta[i, h], k)
            np.testing.assert_allclose(
                out[i, n * h : n * h + n], expected[h] @ q / np.sqrt(n), rtol=1e-4, atol=1e-5
            )
    of_ref = recur(
        lambda name, _, **a: delta_net.gated_delta_net(**a), qkv, decay, beta, 2, heads_per_key, (9,)
    )
    assert_same_bits(out, of_ref[0])
    assert_same_bits(state, of_ref[1])


def each_alone(run, name, sizes, rows, state, out):
    """Run an op on CELLS, and on the rows of each sequence by itself; the outputs and states of both ways."""
    together, alone = (out.copy(), state.copy()), (out.copy(), state.copy())
    run(name, {**sizes, "rows": ROWS}, **rows(slice(None)), out=together[0], state=together[1], **SHARED)
    for number in (2, 0, 1, 3):
        part = np.flatnonzero(CELLS[:, 0] == N_CTX * number)
        part = slice(int(part[0]), int(part[-1]) + 1)
        own = np.split(alone[1], 4)[number]
        options = {"n_past": int(CELLS[part.start, 1]), **ALONE}
        run(
            name,
            {**sizes, "rows": part.stop - part.start},
            **rows(part),
            out=alone[0][part],
            state=own,
            **options,
        )
    return together, alone


SHARED = {"n_past": 77, "n_ctx": N_CTX, "cells": CELLS}


def test_ssm_conv_of_several_sequences(rng, run, assert_same_bits):
    x, weight, state = normal(rng, ROWS, 70), normal(rng, 70, 4), normal(rng, 12, 70)
    together, alone = each_alone(
        run,
        "ssm_conv",
        {"n": 70, "d_conv": 4},
        lambda part: {"x": x[part], "weight": weight},
        state,
        np.empty_like(x),
    )
    for a, b in zip(together, alone, strict=True):
        assert_same_bits(a, b)


def test_gated_delta_net_of_several_sequences(rng, run, assert_same_bits):
    qkv, state = normal(rng, ROWS, 64), normal(rng, 4 * 4 * 8, 8)
    decay, beta = (rng.random((ROWS, 4), np.float32) for _ in range(2))
    together, alone = each_alone(
        run,
        "gated_delta_net",
        {"n": 8, "n_head": 4},
        lambda part: {
            "qkv": qkv[part],
            "decay": decay[part],
            "beta": beta[part],
            "n_head_k": 2,
            "heads_per_key": 2,
        },
        state,
        np.empty((ROWS, 32), np.float32),
    )
    for a, b in zip(together, alone, strict=True):
        assert_same_bits(a, b)
