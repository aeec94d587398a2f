"""Attention: near the reference, and the same bits in each kernel, however many tokens there are."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.cuda.attention_launch import attention_scores_stride, attention_splits
from gguf_moe_kernels.ref import activations, kv_cache

N_CTX = 320
ONE = "attention_one.attention_"
KINDS = {np.dtype("f2"): "f16", np.dtype("f4"): "f32", np.dtype("u1"): "q8_0"}


@pytest.fixture
def attend(call):
    def run(
        q, k, v, *, n_head, n_head_kv, n_past, n_splits=1, kernel="attention.attention_", d_v=0, **options
    ):
        v_width = kv_cache.elements(v[:1]).shape[1]
        rows, d_k, d_v = len(q), q.shape[1] // n_head, d_v or v_width // n_head_kv
        stride = attention_scores_stride(d_v, n_splits)
        scratch = np.zeros(max(rows * n_head * stride // 4, 1), np.float32)
        out = np.zeros((rows, n_head * d_v), np.float32)
        sizes = {"n_head": n_head, "n_head_kv": n_head_kv, "n_embd_head_k": d_k, "n_embd_head_v": d_v}
        name = f"{kernel}{KINDS[k.dtype]}"
        sizes["v_width"] = v_width
        options = {"n_swa": 0, "chunked": 0, "sinks": None, "scale": 0.2} | options
        if options["sinks"] is None:
            options["sinks"] = 0
        for _ in range(2):  # the counters are back at 0 after the first
            out[:] = 0
            call(
                name, structs.ATTENTION, q=q, k=k, v=v, out=out, n_past=n_past, cells=0, scores=scratch,
                scores_stride=stride, rows=rows, **sizes, **options,
            )  # fmt: skip
        return out

    return run


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["f16", "f32"])
@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "d_k", "d_v"),
    [(4, 2, 64, 64), (3, 1, 8, 8), (2, 2, 80, 72), (10, 1, 32, 128), (1, 1, 256, 256), (2, 1, 192, 128)],
)
@pytest.mark.parametrize(("n_past", "rows", "n_swa"), [(0, 2, 0), (300, 2, 0), (127, 2, 8), (300, 2, 200)])
@pytest.mark.parametrize(("has_sinks", "chunked"), [(False, 0), (True, 0), (False, 1)])
def test_attention(
    rng, attend, assert_same_bits, dtype, n_head, n_head_kv, d_k, d_v, n_past, rows, n_swa, has_sinks, chunked
):
    q = normal(rng, rows, n_head * d_k)
    k = normal(rng, N_CTX, n_head_kv * d_k).astype(dtype)
    v = normal(rng, N_CTX, n_head_kv * d_v).astype(dtype)
    k[n_past + rows :], v[n_past + rows :] = np.nan, np.nan  # what is not there yet must not matter
    options = {"n_head": n_head, "n_head_kv": n_head_kv, "n_past": n_past, "n_swa": n_swa, "chunked": chunked}
    options["sinks"] = normal(rng, n_head) if has_sinks else None
    expected = np.zeros((rows, n_head * d_v), np.float32)
    kv_cache.attention(q, k, v, expected, scale=0.2, **options)
    walked = attend(q, k, v, **options)
    error = ((walked - expected).astype(float) ** 2).sum() / (expected.astype(float) ** 2).sum()
    assert error < 1e-11
    options |= {"n_past": n_past + 1, "kernel": ONE, "n_splits": attention_splits(N_CTX, n_swa)}
    assert_same_bits(attend(q[1:], k, v, **options), walked[1:])


@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "d_k", "d_v"), [(4, 2, 64, 64), (10, 1, 32, 128), (2, 1, 192, 96)]
)
@pytest.mark.parametrize(("n_past", "n_swa"), [(0, 0), (300, 0), (127, 8)])
def test_attention_over_blocks(rng, attend, assert_same_bits, n_head, n_head_kv, d_k, d_v, n_past, n_swa):
    """As over float32 that the blocks stand for, bit for bit, in each of the kernels."""
    q, k, v = (
        normal(rng, 2, n_head * d_k),
        normal(rng, N_CTX, n_head_kv * d_k),
        normal(rng, N_CTX, n_head_kv * d_v),
    )
    k[n_past + 2 :], v[n_past + 2 :] = np.nan, np.nan
    blocks = [activations.q8_0_blocks(x) for x in (k, v)]
    floats = [kv_cache.elements(x) for x in blocks]
    options = {"n_head": n_head, "n_head_kv": n_head_kv, "n_past": n_past, "n_swa": n_swa}
    expected = attend(q, *floats, **options)
    assert_same_bits(attend(q, *blocks, **options), expected)
    of_one = {"kernel": ONE, "n_past": n_past + 1, "n_splits": attention_splits(N_CTX, n_swa)}
    assert_same_bits(attend(q[1:], *blocks, **options | of_one), expected[1:])
    if not n_swa and max(d_k, d_v) <= 128:
        assert_same_bits(attend(q, *blocks, kernel="attention_many.attention_", **options), expected)


def test_nan_is_not_lost(rng, attend):
    q, k, v = normal(rng, 1, 16), normal(rng, N_CTX, 16), normal(rng, N_CTX, 16)
    k[40, 3] = np.nan
    for options in ({}, {"kernel": ONE, "n_splits": 3}):
        out = attend(q, k, v, n_head=2, n_head_kv=2, n_past=299, **options)
        assert np.isnan(out[0, :8]).all()
        assert np.isfinite(out[0, 8:]).all()


@pytest.mark.parametrize(
    ("kind", "d", "n_past"),
    [("f16", 128, 300), ("f16", 256, 100), ("f32", 128, 300), ("f32", 256, 100), ("q8_0", 128, 300)],
)
def test_attention_in_int8(rng, call, attend, assert_same_bits, kind, d, n_past):
    n_head, n_head_kv, activation = 8, 2, ActivationFormat.Q8_K
    q = normal(rng, 1, n_head * d)
    k, v = (normal(rng, N_CTX, n_head_kv * d) for _ in "kv")
    if kind == "q8_0":
        k, v = activations.q8_0_blocks(k), activations.q8_0_blocks(v)
    elif kind == "f16":
        k, v = k.astype(np.float16), v.astype(np.float16)
    expected = attend(q, k, v, n_head=n_head, n_head_kv=n_head_kv, n_past=n_past)
    stride = attention_scores_stride(d, attention_splits(N_CTX, 0))
    out = np.zeros((1, n_head * d), np.float32)
    rows = np.zeros((1, activation.row_size(n_head * d)), np.uint8)
    sizes = {"n_head": n_head, "n_head_kv": n_head_kv, "n_embd_head_k": d, "n_embd_head_v": d}
    sizes |= {"v_width": n_head_kv * d, "n_swa": 0, "chunked": 0}
    arrays = {"q": q, "k": k, "v": v, "out": out, "scores": np.zeros(n_head * stride // 4, np.float32)}
    options = {"sinks": 0, "scale": 0.2, "scores_stride": stride, "n_past": n_past, "cells": 0, "rows": 1}
    call(
        f"attention_one.attention_q8_k_{kind}",
        structs.ATTENTION_QUANTIZE,
        attention=arrays | sizes | options,
        quantize={"x": out, "n": n_head * d, "out": rows, "out_stride": rows.shape[1], "rows": 1},
    )
    assert_same_bits(out, expected)
    assert_same_bits(rows, activations.quantize(activation, expected))


def test_one_token_without_splits(rng, attend, assert_same_bits):
    """In a short context there is no memory for parts."""
    q, k, v = normal(rng, 1, 4 * 64), normal(rng, 128, 2 * 64), normal(rng, 128, 2 * 64)
    options = {"n_head": 4, "n_head_kv": 2, "n_past": 99}
    assert_same_bits(attend(q, k, v, kernel=ONE, **options), attend(q, k, v, **options))


def test_values_may_be_the_beginnings_of_keys(rng, attend, assert_same_bits):
    q, k = normal(rng, 2, 4 * 96), normal(rng, N_CTX, 96)
    options = {"n_head": 4, "n_head_kv": 1, "n_past": 200}
    packed = attend(q, k, k[:, :64].copy(), **options)
    assert_same_bits(attend(q, k, k, d_v=64, **options), packed)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["f16", "f32"])
@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "d_k", "d_v", "n_past", "rows"),
    [(8, 2, 128, 128, 0, 20), (3, 1, 80, 72, 120, 13), (12, 1, 64, 8, 250, 6), (2, 2, 8, 64, 127, 40)],
)
@pytest.mark.parametrize("has_sinks", [False, True])
def test_many_tokens(
    rng, attend, assert_same_bits, dtype, n_head, n_head_kv, d_k, d_v, n_past, rows, has_sinks
):
    q = normal(rng, rows, n_head * d_k)
    k = normal(rng, N_CTX, n_head_kv * d_k).astype(dtype)
    v = normal(rng, N_CTX, n_head_kv * d_v).astype(dtype)
    k[n_past + rows :], v[n_past + rows :] = np.nan, np.nan
    options = {"n_head": n_head, "n_head_kv": n_head_kv, "n_past": n_past}
    options["sinks"] = normal(rng, n_head) if has_sinks else None
    assert_same_bits(
        attend(q, k, v, kernel="attention_many.attention_", **options), attend(q, k, v, **options)
    )
