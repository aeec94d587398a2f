"""The KV cache and attention: the kernels against the reference, bit for bit."""

import functools

import numpy as np
import pytest
from arrays import empty, normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.ref import activations, kv_cache


def cache_of(kind, x):
    """Rows of a KV cache of this type."""
    return activations.q8_0_blocks(x) if kind == "q8_0" else x.astype({"f16": "f2", "f32": "f4"}[kind])


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["f16", "f32"])
def test_kv_store(rng, call_op, assert_same_bits, dtype):
    x, cache, expected = normal(rng, 3, 40), empty(8, 40, dtype=dtype), empty(8, 40, dtype=dtype)
    x[0, :6] = 65520, 65519, 6e-8, 2.98e-8, -1e-9, np.nan
    kind = "f16" if dtype is np.float16 else "f32"
    store = functools.partial(call_op, f"elementwise.kv_store_{kind}", structs.KV_STORE, cache=cache, n=40)
    store(x=x, n_past=4, cells=0, rows=3)
    kv_cache.kv_store(x, expected, 4)
    assert_same_bits(cache, expected)
    cells = np.array([[5, 2], [0, 1], [5, 0]], np.int32)
    store(x=x[::-1].copy(), n_past=0, cells=cells, rows=3)
    kv_cache.kv_store(x[::-1], expected, 0, cells)
    assert_same_bits(cache, expected)


def test_kv_store_in_blocks(rng, call_op, assert_same_bits):
    x = normal(rng, 3, 96)
    x[0, :32], x[0, 40], x[1, 3], x[1, 70] = 1e-6, 1e9, np.inf, np.nan
    x[2, :32] = np.linspace(-127, 127, 32)
    cache, expected = (np.zeros((8, 102), np.uint8) for _ in range(2))
    cells = np.array([[5, 2], [0, 1], [5, 0]], np.int32)
    store = functools.partial(call_op, "elementwise.kv_store_q8_0", structs.KV_STORE, cache=cache, n=96)
    for sequences in (None, cells):
        store(x=x, n_past=2, cells=0 if sequences is None else cells, rows=3)
        kv_cache.kv_store(x, expected, 2, sequences)
        assert_same_bits(kv_cache.elements(cache), kv_cache.elements(expected))
    assert_same_bits(cache[5], expected[5])
    np.testing.assert_array_equal(kv_cache.elements(cache)[5, :32], np.rint(x[2, :32]))


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "d_k", "d_v"),
    [(4, 2, 64, 64), (3, 1, 8, 8), (2, 2, 80, 72), (8, 2, 32, 128), (4, 1, 96, 40)],
)
@pytest.mark.parametrize(
    ("n_past", "rows", "n_swa"), [(0, 1, 0), (0, 5, 0), (37, 3, 0), (6, 5, 8), (37, 3, 8)]
)
@pytest.mark.parametrize(("has_sinks", "chunked"), [(False, 0), (True, 0), (False, 1)])
def test_attention(
    rng,
    attend,
    assert_same_bits,
    kind,
    n_head,
    n_head_kv,
    d_k,
    d_v,
    n_past,
    rows,
    n_swa,
    has_sinks,
    chunked,
):
    heads = {"n_head": n_head, "n_head_kv": n_head_kv, "d_k": d_k, "d_v": d_v}
    seen = {"n_past": n_past, "rows": rows, "n_swa": n_swa, "chunked": chunked, "has_sinks": has_sinks}
    assert_same_bits(*attend(rng, kind, **heads, **seen))


@pytest.mark.parametrize(
    ("n_head", "n_head_kv", "d_k", "d_v"), [(4, 2, 64, 64), (3, 1, 32, 32), (8, 2, 32, 128), (4, 1, 96, 64)]
)
@pytest.mark.parametrize(
    ("n_past", "rows", "n_swa", "chunked"), [(0, 1, 0, 0), (37, 3, 0, 0), (6, 5, 8, 0), (37, 3, 8, 1)]
)
def test_attention_over_blocks(
    rng, attend, assert_same_bits, n_head, n_head_kv, d_k, d_v, n_past, rows, n_swa, chunked
):
    heads = {"n_head": n_head, "n_head_kv": n_head_kv, "d_k": d_k, "d_v": d_v}
    seen = {"n_past": n_past, "rows": rows, "n_swa": n_swa, "chunked": chunked, "has_sinks": rows > 3}
    assert_same_bits(*attend(rng, "q8_0", **heads, **seen))


def attention_of(call_op, rng, kind, *, n_head, n_head_kv, d_k, d_v, n_past, rows, n_swa, chunked, has_sinks):
    """What the kernel and the reference give for random numbers and a cache of this type."""
    q, k, v = (
        normal(rng, rows, n_head * d_k),
        normal(rng, 48, n_head_kv * d_k),
        normal(rng, 48, n_head_kv * d_v),
    )
    sinks = normal(rng, n_head) * 5 if has_sinks else None
    k, v = cache_of(kind, k), cache_of(kind, v)
    out, expected = empty(rows, n_head * d_v), empty(rows, n_head * d_v)
    n_heads = max(n for n in structs.HEADS_AT_ONCE if n_head // n_head_kv % n == 0)
    scores = empty(n_heads, 48)
    heads = {"n_head": n_head, "n_head_kv": n_head_kv, "n_swa": n_swa, "chunked": chunked, "scale": d_k**-0.5}
    call_op(
        f"attention.attention_{kind}_{n_heads}",
        structs.ATTENTION,
        q=q,
        k=k,
        v=v,
        sinks=sinks if has_sinks else 0,
        out=out,
        n_embd_head_k=d_k,
        n_embd_head_v=d_v,
        v_width=n_head_kv * d_v,
        n_past=n_past,
        cells=0,
        scores=scores,
        scores_stride=scores.strides[0],
        rows=rows,
        **heads,
    )
    kv_cache.attention(q, k, v, expected, n_past, **heads, sinks=sinks)
    return out, expected


@pytest.fixture(scope="module")
def attend(call_op):
    return functools.partial(attention_of, call_op)


@pytest.mark.parametrize(("n_swa", "chunked"), [(0, 0), (3, 0), (3, 1)])
def test_attention_of_several_sequences_is_that_of_each_alone(rng, call_op, assert_same_bits, n_swa, chunked):
    q, k, v = normal(rng, 3, 2 * 32), normal(rng, 48, 32), normal(rng, 48, 32)
    out, expected, scores = empty(3, 64), empty(3, 64), empty(2, 48)
    heads = {"n_head": 2, "n_head_kv": 1, "n_swa": n_swa, "chunked": chunked, "scale": 0.2}
    cells = np.array([[16, 5], [0, 9], [16, 6]], np.int32)
    call_op(
        "attention.attention_f32_2",
        structs.ATTENTION,
        q=q,
        k=k,
        v=v,
        sinks=0,
        out=out,
        n_embd_head_k=32,
        n_embd_head_v=32,
        v_width=32,
        n_past=0,
        cells=cells,
        scores=scores,
        scores_stride=scores.strides[0],
        rows=3,
        **heads,
    )
    for i, (first, position) in enumerate(cells):
        kv_cache.attention(q[i : i + 1], k[first:], v[first:], expected[i : i + 1], position, **heads)
    assert_same_bits(out, expected)
    kv_cache.attention(q, k, v, expected, 0, **heads, cells=cells)
    assert_same_bits(out, expected)


def test_a_token_sees_its_own_stretch(rng):
    q, k, v = normal(rng, 1, 32), normal(rng, 20, 32), normal(rng, 20, 32)
    for n_past, first in ((11, 6), (12, 12), (17, 12), (3, 0)):
        out, expected = empty(1, 32), empty(1, 32)
        heads = {"n_head": 1, "n_head_kv": 1, "scale": 0.2}
        kv_cache.attention(q, k, v, out, n_past, **heads, n_swa=6, chunked=1)
        kv_cache.attention(q, k[first:], v[first:], expected, n_past - first, **heads)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_values_may_be_the_beginnings_of_keys(rng, call_op, assert_same_bits, kind):
    n_head, d_k, d_v, rows, n_past = 4, 96, 64, 3, 20
    q, k = normal(rng, rows, n_head * d_k), cache_of(kind, normal(rng, 32, d_k))
    out, expected, packed = empty(rows, n_head * d_v), empty(rows, n_head * d_v), empty(rows, n_head * d_v)
    scores = empty(4, 32)
    heads = {"n_head": n_head, "n_head_kv": 1, "scale": 0.1, "n_swa": 0, "chunked": 0}
    sizes = {"n_embd_head_k": d_k, "n_embd_head_v": d_v, "v_width": d_k, "scores_stride": scores.strides[0]}
    call_op(
        f"attention.attention_{kind}_4",
        structs.ATTENTION,
        q=q,
        k=k,
        v=k,
        sinks=0,
        out=out,
        n_past=n_past,
        cells=0,
        scores=scores,
        rows=rows,
        **heads,
        **sizes,
    )
    kv_cache.attention(q, k, k, expected, n_past, **heads)
    kv_cache.attention(q, k, cache_of("f32", kv_cache.elements(k)[:, :d_v]), packed, n_past, **heads)
    assert_same_bits(out, expected)
    assert_same_bits(expected, packed)


def test_attention_is_near_the_truth(rng):
    q, k, v, out = normal(rng, 1, 64), normal(rng, 20, 64), normal(rng, 20, 64), empty(1, 64)
    for n_swa, seen in ((0, slice(0, 20)), (6, slice(14, 20)), (40, slice(0, 20))):
        kv_cache.attention(q, k, v, out, 19, n_head=1, n_head_kv=1, n_swa=n_swa, scale=0.125)
        scores = np.exp(0.125 * k[seen].astype(float) @ q[0])
        np.testing.assert_allclose(out[0], scores / scores.sum() @ v[seen], atol=1e-6)
        sinks = np.float32([1.5])
        kv_cache.attention(q, k, v, out, 19, n_head=1, n_head_kv=1, n_swa=n_swa, scale=0.125, sinks=sinks)
        np.testing.assert_allclose(out[0], scores / (scores.sum() + np.exp(1.5)) @ v[seen], atol=1e-6)
