"""Every op that isn't a tile or about experts: the kernel against the reference, bit for bit."""

import functools

import numpy as np
import pytest

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, exact, kv_cache, matmul, ops

Q4_K, Q8_0, F32 = GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F32


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def empty(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("qtype", [F32, Q4_K, Q8_0], ids=lambda q: q.name)
def test_get_rows(rng, library, call_op, random_rows, assert_same_bits, qtype):
    weight, tokens = random_rows(rng, qtype, 9, 256), np.array([8, 0, 3, 3], np.int32)
    out, expected = empty(4, 256), empty(4, 256)
    call_op(
        "elementwise.get_rows",
        structs.GET_ROWS,
        dequantize=library.address(f"{qtype.name.lower()}.dequantize"),
        weight=weight,
        row_size=qtype.row_size(256),
        n=256,
        tokens=tokens,
        out=out,
        rows=4,
    )
    ops.get_rows(qtype, weight, tokens, expected)
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    "activation", [ActivationFormat.Q8_0, ActivationFormat.Q8_1, ActivationFormat.Q8_K], ids=lambda a: a.name
)
@pytest.mark.parametrize("n", [256, 768, 4352])
def test_quantize(rng, call_op, assert_same_bits, activation, n):
    x = normal(rng, 5, n) * 10.0 ** np.arange(-6, 4, 2, dtype=np.float32)[:, None]
    x[1, :256] = 0
    x[2, :32] = np.float32([0.5, -1.5, 127, 2.5] * 8)  # halves are rounded to even
    x[3, 5], x[4, 7] = np.nan, np.inf
    out = empty(5, activation.row_size(n), dtype=np.uint8)
    call_op(
        f"activation.quantize_{activation.value}",
        structs.QUANTIZE,
        x=x,
        n=n,
        out=out,
        out_stride=out.strides[0],
        rows=5,
    )
    expected = activations.quantize(activation, x)
    assert_same_bits(out[:3], expected[:3])
    got, wanted = (activations.planes(activation, rows, n).d for rows in (out, expected))
    assert_same_bits(got, wanted)
    assert np.isnan(got[3:, 0]).all()  # what is not finite is never lost
    assert np.isfinite(got[3:, 1:]).all()


@pytest.mark.parametrize("activation", ["q8_0", "q8_1", "q8_k"])
def test_quantize_the_smallest_and_the_largest(rng, call_op, assert_same_bits, activation):
    x = normal(rng, 5, 256).clip(-3, 3) * np.float32([1e-44, 1e-40, 1e-36, 1e9, 1e38])[:, None]
    activation = ActivationFormat(activation)
    out = empty(5, activation.row_size(256), dtype=np.uint8)
    sizes = {"n": 256, "out_stride": out.strides[0], "rows": 5}
    call_op(f"activation.quantize_{activation.value}", structs.QUANTIZE, x=x, out=out, **sizes)
    assert_same_bits(out, activations.quantize(activation, x))


@pytest.mark.parametrize("n", [8, 33, 256, 300])
@pytest.mark.parametrize("n_head", [1, 3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rms_norm(rng, call_op, assert_same_bits, n, n_head, has_bias):
    x, weight, bias = normal(rng, 3, n_head * n), normal(rng, n), normal(rng, n) if has_bias else None
    x[2] = 0
    out, expected = empty(*x.shape), empty(*x.shape)
    sizes = {"n": n, "n_head": n_head, "rows": 3, "eps": 1e-5}
    arrays = {"weight": weight, "bias": bias if has_bias else 0}
    call_op("elementwise.rms_norm", structs.RMS_NORM, x=x, out=out, **arrays, **sizes)
    ops.rms_norm(x, expected, 1e-5, n_head, weight, bias)
    assert_same_bits(out, expected)
    call_op("elementwise.rms_norm", structs.RMS_NORM, x=x, out=x, **arrays, **sizes)
    assert_same_bits(x, expected)


def test_rms_norm_without_a_weight(rng, call_op, assert_same_bits):
    x, out, expected = normal(rng, 3, 80), empty(3, 80), empty(3, 80)
    sizes = {"n": 40, "n_head": 2, "rows": 3, "eps": 1e-5}
    call_op("elementwise.rms_norm", structs.RMS_NORM, x=x, out=out, weight=0, bias=0, **sizes)
    ops.rms_norm(x, expected, 1e-5, 2)
    assert_same_bits(out, expected)
    np.testing.assert_allclose(np.square(out.reshape(6, 40)).mean(axis=1), 1, rtol=1e-3)


def test_rms_norm_of_heads_is_near_the_truth(rng):
    x, weight, bias, out = normal(rng, 2, 24), normal(rng, 8), normal(rng, 8), empty(2, 24)
    ops.rms_norm(x, out, 0.5, 3, weight, bias)
    head = x[1, 8:16].astype(float)
    np.testing.assert_allclose(
        out[1, 8:16], head / np.sqrt((head**2).mean() + 0.5) * weight + bias, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("n", [32, 77])
@pytest.mark.parametrize("has_residual", [False, True])
def test_scale(rng, call_op, assert_same_bits, n, has_residual):
    x, residual = normal(rng, 3, n), normal(rng, 3, n) if has_residual else None
    out, expected = empty(3, n), empty(3, n)
    arrays = {"x": x, "residual": residual if has_residual else 0}
    call_op("elementwise.scale", structs.SCALE, out=out, n=n, rows=3, factor=0.22, **arrays)
    ops.scale(x, expected, 0.22, residual)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("n_embd_head", "n_rot"), [(8, 8), (64, 64), (80, 32)])
def test_rope(rng, call_op, assert_same_bits, n_embd_head, n_rot, style):
    pair_stride = 1 if style == "norm" else n_rot // 2
    x, theta = normal(rng, 3, 2 * n_embd_head), normal(rng, 3, n_rot // 2)
    cos, sin, expected = np.cos(theta), np.sin(theta), x.copy()
    options = {"n_head": 2, "n_rot": n_rot, "pair_stride": pair_stride}
    ops.rope(expected, cos, sin, **options)
    call_op(
        "elementwise.rope", structs.ROPE, x=x, n_embd_head=n_embd_head, cos=cos, sin=sin, rows=3, **options
    )
    assert_same_bits(x, expected)


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


@pytest.mark.parametrize("n", [32, 77, 4352])
def test_swiglu(rng, call_op, assert_same_bits, n):
    gate, up = normal(rng, 4, n) * 20, normal(rng, 4, n)
    gate[0, :4] = np.nan, np.inf, -np.inf, -0.0
    expected = gate.copy()
    ops.swiglu(expected, up)
    call_op("elementwise.swiglu", structs.SWIGLU, gate=gate, up=up, n=n, rows=4)
    assert_same_bits(gate, expected)
    assert np.isnan(gate[0, 0])


def test_swiglu_oai(rng, call_op, assert_same_bits):
    gate, up = normal(rng, 4, 77) * 10, normal(rng, 4, 77) * 10
    gate[0, :4] = np.nan, np.inf, -np.inf, -0.0
    up[1, :4] = np.nan, np.inf, -np.inf, -0.0
    before, expected = gate.copy(), gate.copy()
    ops.swiglu_oai(expected, up)
    call_op("elementwise.swiglu_oai", structs.SWIGLU_OAI, gate=gate, up=up, n=77, rows=4)
    assert_same_bits(gate, expected)
    assert np.isnan(gate[0, 0])
    assert np.isnan(gate[1, 0])
    g, u = before[2:].astype(float).clip(None, 7), up[2:].astype(float).clip(-7, 7)
    np.testing.assert_allclose(gate[2:], g / (1 + np.exp(-1.702 * g)) * (u + 1), rtol=1e-5)


def test_geglu(rng, call_op, assert_same_bits):
    gate, up = normal(rng, 4, 77) * 3, normal(rng, 4, 77)
    gate[0, :4] = np.nan, np.inf, -np.inf, -0.0
    before, expected = gate.copy(), gate.copy()
    ops.geglu(expected, up)
    call_op("elementwise.geglu", structs.GEGLU, gate=gate, up=up, n=77, rows=4)
    assert_same_bits(gate, expected)
    assert np.isnan(gate[0, 0])
    x = before[1:].astype(float)
    truth = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gate[1:], truth * up[1:], rtol=1e-5, atol=1e-10)


def test_softcap(rng, call_op, assert_same_bits):
    x = normal(rng, 4, 77) * 60
    x[0, :4] = np.nan, np.inf, -np.inf, 0.0
    before, expected = x.copy(), x.copy()
    ops.softcap(expected, 30.0)
    call_op("elementwise.softcap", structs.SOFTCAP, x=x, n=77, cap=30.0, rows=4)
    assert_same_bits(x, expected)
    assert np.isnan(x[0, 0])
    np.testing.assert_array_equal(x[0, 1:4], [30, -30, 0])
    np.testing.assert_allclose(x[1:], 30 * np.tanh(before[1:].astype(float) / 30), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("chunk_rows", "n_threads"), [(4, 1), (4, 2), (11, 4), (64, 1)])
@pytest.mark.parametrize("n", [1, 3])
def test_matmul(
    rng, library, call_op, random_rows, assert_same_bits, bias, residual, chunk_rows, n_threads, n
):
    weight, x = (
        random_rows(rng, Q8_0, 11, 96),
        activations.quantize(ActivationFormat.Q8_0, normal(rng, n, 96)),
    )
    added = {"bias": normal(rng, 11) if bias else None, "residual": normal(rng, n, 11) if residual else None}
    out, expected = empty(n, 11), empty(n, 11)
    call_op(
        "matmul.matmul",
        structs.MATMUL,
        tile=library.address("q8_0.tile"),
        weight=weight,
        row_size=weight.shape[1],
        n_out=11,
        n_in=96,
        x=x,
        x_stride=x.shape[1],
        out=out,
        rows=n,
        chunk_rows=chunk_rows if n > 1 else 11,
        one_token_rows=chunk_rows if n == 1 else 11,
        n_threads=n_threads,
        **{name: 0 if array is None else array for name, array in added.items()},
    )
    matmul.matmul(Q8_0, weight, x, expected, **added)
    assert_same_bits(out, expected)


def test_silu_is_near_the_truth(rng):
    x = normal(rng, 1000) * 10
    truth = x / (1 + np.exp(-x.astype(float)))
    np.testing.assert_allclose(exact.silu(x), truth, rtol=1e-6, atol=1e-30)
