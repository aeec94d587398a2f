"""Fused kernels give the bits of the kernels that they stand for."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ActivationFormat

FORMATS = (ActivationFormat.Q8_0, ActivationFormat.Q8_1, ActivationFormat.Q8_K)


@pytest.mark.parametrize("n", [256, 768, 2304])
@pytest.mark.parametrize("has_bias", [False, True])
def test_norm_quantize(rng, call, assert_same_bits, n, has_bias):
    x, weight, out = normal(rng, 3, n), normal(rng, n), np.zeros((2, 3, n), np.float32)
    bias = normal(rng, n) if has_bias else 0
    rows = {f: np.zeros((2, 3, f.row_size(n)), np.uint8) for f in FORMATS}
    norm = {"x": x, "weight": weight, "bias": bias, "n": n, "eps": 1e-5, "rows": 2}
    call("elementwise.rms_norm", structs.RMS_NORM, out=out[0], n_head=1, **norm)
    formats = {}
    for f in FORMATS:
        sizes = {"n": n, "out_stride": f.row_size(n), "rows": 2}
        call(f"activation.quantize_{f.value}", structs.QUANTIZE, x=out[0], out=rows[f][0], **sizes)
        formats |= {f.value: rows[f][1], f"{f.value}_stride": f.row_size(n)}
    call("fused.norm_quantize", structs.NORM_QUANTIZE, out=out[1], largest_rows=3, **norm, **formats)
    assert_same_bits(out[1], out[0])
    for f in FORMATS:
        assert_same_bits(rows[f][1], rows[f][0])


def test_norm_quantize_leaves_out_formats_without_address(rng, call):
    x, out = normal(rng, 1, 256), np.zeros((1, 256), np.float32)
    q8_k = np.zeros((1, ActivationFormat.Q8_K.row_size(256)), np.uint8)
    formats = {f"{f.value}{end}": 0 for f in FORMATS for end in ("", "_stride")} | {"q8_k": q8_k}
    call(
        "fused.norm_quantize", structs.NORM_QUANTIZE, x=x, weight=normal(rng, 256), bias=0, out=out, n=256,
        eps=1e-5, rows=1, **formats,
    )  # fmt: skip
    assert q8_k.any()


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    ("kind", "n_head", "n_head_kv", "d", "d_v", "n_rot", "pair_stride"),
    [
        (kind, *heads)
        for heads in ((4, 2, 64, 64, 64, 32), (3, 1, 40, 24, 16, 8), (2, 2, 128, 160, 128, 1))
        for kind in ("f16", "f32", "q8_0")
        if kind != "q8_0" or heads[2] % 32 == 0
    ],
)
def test_rope_store(
    rng, call, assert_same_bits, kind, has_norms, n_head, n_head_kv, d, d_v, n_rot, pair_stride
):
    q, k, v = normal(rng, 3, n_head * d), normal(rng, 3, n_head_kv * d), normal(rng, 3, n_head_kv * d_v)
    weights = {"q_norm": normal(rng, d), "k_norm": normal(rng, d)} if has_norms else {}
    angles = {"cos": normal(rng, 3, n_rot // 2), "sin": normal(rng, 3, n_rot // 2)}
    if kind == "q8_0":
        caches = [np.zeros((2, 8, x.shape[1] // 32 * 34), np.uint8) for x in (k, v)]
    else:
        caches = [np.zeros((2, 8, x.shape[1]), {"f16": "f2", "f32": "f4"}[kind]) for x in (k, v)]
    one_q, one_k, fused_q = q.copy(), k.copy(), q.copy()
    rope = angles | {"n_embd_head": d, "n_rot": n_rot, "pair_stride": pair_stride, "rows": 2}
    for x, n, name in ((one_q, n_head, "q_norm"), (one_k, n_head_kv, "k_norm")):
        if has_norms:
            norm = {"weight": weights[name], "bias": 0, "n": d, "n_head": n, "eps": 1e-5, "rows": 2}
            call("elementwise.rms_norm", structs.RMS_NORM, x=x, out=x, **norm)
        call("elementwise.rope", structs.ROPE, x=x, n_head=n, **rope)
    for x, cache in ((one_k, caches[0]), (v, caches[1])):
        store = {"x": x, "cache": cache[0], "n": x.shape[1], "n_past": 5, "cells": 0, "rows": 2}
        call(f"elementwise.kv_store_{kind}", structs.KV_STORE, **store)
    call(
        f"fused.rope_store_{kind}", structs.ROPE_STORE, q=fused_q, k=k, v=v, cache_k=caches[0][1],
        cache_v=caches[1][1], n_head=n_head, n_head_kv=n_head_kv, n_v=v.shape[1], n_past=5, eps=1e-5,
        largest_rows=3, **({"q_norm": 0, "k_norm": 0} | weights), **rope,
    )  # fmt: skip
    assert_same_bits(fused_q, one_q)
    for cache in caches:
        assert_same_bits(cache[1], cache[0])


@pytest.mark.parametrize(("n", "n_missing", "has_weights"), [(256, 0, True), (768, 2, True), (768, 2, False)])
def test_join_norm_quantize(rng, call, assert_same_bits, n, n_missing, has_weights):
    k, f = 4, ActivationFormat.Q8_K
    missing = np.full((1, k), -1, np.int32)
    missing[0, :n_missing] = np.arange(n_missing)
    words = {name: np.array([5], np.int64) for name in ("answer", "ready", "heartbeat")}
    words |= {name: np.zeros(1, np.int64) for name in ("abort", "aborted", "waited")}
    join = words | {
        "x": normal(rng, k, n),
        "x_missing": normal(rng, k, n),
        "place": np.array([[2, 0, 3, 1]], np.int32),
        "missing_place": missing,
        "n_missing": np.array([n_missing], np.int64),
        "weights": normal(rng, 1, k) if has_weights else 0,
        "residual": normal(rng, 1, n),
    }
    join |= {"x_link": 0, "split": 0, "shared": 0, "k": k, "n": n, "limit": 10**9, "step": 5, "rows": 1}
    norm = {"weight": normal(rng, n), "bias": 0, "n": n, "eps": 1e-5, "rows": 1}
    norm |= {f"{other.value}{end}": 0 for other in FORMATS for end in ("", "_stride")}
    sums, normed = np.zeros((2, 1, n), np.float32), np.zeros((2, 1, n), np.float32)
    quantized = np.zeros((2, 1, f.row_size(n)), np.uint8)

    def arguments(i):
        formats = {f.value: quantized[i], f"{f.value}_stride": f.row_size(n)}
        return join | {"out": sums[i]}, norm | {"x": sums[i], "out": normed[i]} | formats

    for i, is_fused in enumerate((False, True)):
        of_join, of_norm = arguments(i)
        if is_fused:
            call("fused.join_norm_quantize", structs.JOIN_NORM_QUANTIZE, join=of_join, norm=of_norm)
        else:
            call("mailbox.moe_join", structs.MOE_JOIN, **of_join)
            call("fused.norm_quantize", structs.NORM_QUANTIZE, **of_norm)
    for both in (sums, normed, quantized):
        assert both[0].any()
        assert_same_bits(both[1], both[0])
