"""Ops that touch activations one by one: the CUDA kernels against the reference, bit for bit."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.cuda.source import QTYPES
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, kv_cache, ops


@pytest.mark.parametrize("kind", ["q8_0", "q8_1", "q8_k"])
@pytest.mark.parametrize("n", [256, 1536])
def test_quantize(rng, call, assert_same_bits, kind, n):
    activation = ActivationFormat(kind)
    x = normal(rng, 6, n) * 10.0 ** np.arange(-8, 4, 2, dtype=np.float32)[:, None]
    x[1, :256] = 0
    x[2, :32] = np.float32([0.5, -1.5, 127, 2.5] * 8)  # halves are rounded to even
    x[3] *= np.float32(1e-38)
    x[4, 5], x[5, 7] = np.nan, np.inf
    out = np.zeros((6, activation.row_size(n)), np.uint8)
    call(
        f"activation.quantize_{kind}", structs.QUANTIZE, x=x, n=n, out=out, out_stride=out.strides[0], rows=6
    )
    expected = activations.quantize(activation, x)
    assert_same_bits(out[:4], expected[:4])
    got, wanted = (activations.planes(activation, rows, n).d for rows in (out, expected))
    assert_same_bits(got, wanted)
    assert np.isnan(got[4:, 0]).all()


@pytest.mark.parametrize("n", [8, 33, 300, 512, 513, 5000])
@pytest.mark.parametrize("n_head", [1, 3])
@pytest.mark.parametrize(("has_weight", "has_bias"), [(False, False), (True, False), (True, True)])
def test_rms_norm(rng, call, n, n_head, has_weight, has_bias):
    x = normal(rng, 3, n_head * n)
    weight, bias = normal(rng, n) if has_weight else None, normal(rng, n) if has_bias else None
    x[2] = 0
    out, expected = np.zeros_like(x), np.zeros_like(x)
    others = {"weight": weight if has_weight else 0, "bias": bias if has_bias else 0}
    others |= {"n": n, "n_head": n_head, "eps": 1e-5}
    ops.rms_norm(x, expected, 1e-5, n_head, weight, bias)
    call("elementwise.rms_norm", structs.RMS_NORM, x=x, out=out, rows=2, largest_rows=3, **others)
    np.testing.assert_allclose(out[:2], expected[:2], rtol=1e-5, atol=1e-6)
    assert not out[2].any()  # beyond this step's rows nothing is written
    call("elementwise.rms_norm", structs.RMS_NORM, x=x, out=x, rows=3, **others)
    np.testing.assert_array_equal(x[:2], out[:2])


@pytest.mark.parametrize("has_residual", [False, True])
def test_scale(rng, call, assert_same_bits, has_residual):
    x, residual = normal(rng, 3, 300), normal(rng, 3, 300) if has_residual else None
    out, expected = np.zeros_like(x), np.zeros_like(x)
    ops.scale(x, expected, 0.22, residual)
    others = {"residual": residual if has_residual else 0, "n": 300, "rows": 3, "factor": 0.22}
    call("elementwise.scale", structs.SCALE, x=x, out=out, **others)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("style", ["norm", "neox"])
@pytest.mark.parametrize(("n_embd_head", "n_rot"), [(8, 8), (128, 128), (80, 32)])
def test_rope(rng, call, assert_same_bits, n_embd_head, n_rot, style):
    x, theta = normal(rng, 3, 5 * n_embd_head), normal(rng, 3, n_rot // 2)
    cos, sin, expected = np.cos(theta), np.sin(theta), x.copy()
    options = {"n_head": 5, "n_rot": n_rot, "pair_stride": 1 if style == "norm" else n_rot // 2}
    ops.rope(expected, cos, sin, **options)
    call("elementwise.rope", structs.ROPE, x=x, n_embd_head=n_embd_head, cos=cos, sin=sin, rows=3, **options)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["f16", "f32"])
def test_kv_store(rng, call, assert_same_bits, dtype):
    x, cache, expected = normal(rng, 3, 300), np.zeros((8, 300), dtype), np.zeros((8, 300), dtype)
    x[0, :7] = 65520, 65519, 6e-8, 2.98e-8, -1e-9, np.nan, 6.1e-5
    name = f"elementwise.kv_store_{'f16' if dtype is np.float16 else 'f32'}"
    call(name, structs.KV_STORE, x=x, cache=cache, n=300, n_past=4, cells=0, rows=3)
    kv_cache.kv_store(x, expected, 4)
    assert_same_bits(cache, expected)


def test_kv_store_in_blocks(rng, call, assert_same_bits):
    x, cache, expected = normal(rng, 3, 320), np.zeros((8, 340), np.uint8), np.zeros((8, 340), np.uint8)
    x[0, :32], x[0, 40], x[1, 3], x[1, 70] = 1e-6, 1e9, np.inf, np.nan
    call("elementwise.kv_store_q8_0", structs.KV_STORE, x=x, cache=cache, n=320, n_past=4, cells=0, rows=3)
    kv_cache.kv_store(x, expected, 4)
    assert_same_bits(kv_cache.elements(cache), kv_cache.elements(expected))
    assert_same_bits(cache[6], expected[6])


@pytest.mark.parametrize(
    ("name", "struct"),
    [("swiglu", structs.SWIGLU), ("swiglu_oai", structs.SWIGLU_OAI), ("geglu", structs.GEGLU)],
)
def test_gated_unit(rng, call, assert_same_bits, name, struct):
    gate, up = 8 * normal(rng, 3, 300), 8 * normal(rng, 3, 300)
    gate[0, :6] = 200, -200, np.nan, np.inf, -np.inf, 0
    up[1, :3] = np.nan, np.inf, -np.inf
    expected = gate.copy()
    getattr(ops, name)(expected, up)
    call(f"elementwise.{name}", struct, gate=gate, up=up, n=300, rows=3)
    assert_same_bits(gate, expected)


def test_softcap(rng, call, assert_same_bits):
    x = 60 * normal(rng, 3, 300)
    x[0, :4] = np.nan, np.inf, -np.inf, 0.0
    expected = x.copy()
    ops.softcap(expected, 30.0)
    call("elementwise.softcap", structs.SOFTCAP, x=x, n=300, cap=30.0, rows=3)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("kind", ["q8_0", "q8_1", "q8_k"])
def test_quantize_heads(rng, call, assert_same_bits, kind):
    activation, x = ActivationFormat(kind), normal(rng, 3, 4, 272)
    out = np.zeros((3, 4, activation.row_size(256)), np.uint8)
    sizes = {"width": 272, "n": 256, "n_head": 4, "out_stride": out.strides[1], "rows": 3}
    call(f"activation.quantize_heads_{kind}", structs.QUANTIZE_HEADS, x=x, out=out, **sizes)
    assert_same_bits(out, activations.quantize(activation, x[..., :256].reshape(12, 256)).reshape(out.shape))


def test_concat(rng, call, assert_same_bits):
    a, b = normal(rng, 3, 4 * 65), normal(rng, 3, 4 * 80)
    out, expected = np.zeros((2, 3, 4 * 97), np.float32)
    ops.concat(a, b, expected, n_head=4, n_b=32)
    sizes = {"n_a": 65, "b_width": 80, "n_b": 32, "n_head": 4, "rows": 3}
    call("elementwise.concat", structs.CONCAT, a=a, b=b, out=out, **sizes)
    assert_same_bits(out, expected)


def test_parts(rng, call, assert_same_bits):
    x, out, expected = normal(rng, 3, 300), *np.zeros((2, 3, 200), np.float32)
    options = {"n_head": 5, "n": 33, "first": 7, "stride": 50, "out_first": 20}
    ops.parts(x, expected, **options)
    call("elementwise.parts", structs.PARTS, x=x, out=out, x_width=300, out_width=200, rows=3, **options)
    assert_same_bits(out, expected)


def test_sigmoid_mul(rng, call, assert_same_bits):
    x, gate = normal(rng, 3, 300), 8 * normal(rng, 3, 300)
    gate[0, :5] = 200, -200, np.nan, np.inf, -np.inf
    expected = x.copy()
    ops.sigmoid_mul(expected, gate)
    call("elementwise.sigmoid_mul", structs.SIGMOID_MUL, x=x, gate=gate, n=300, rows=3)
    assert_same_bits(x, expected)


def test_scale_rows(rng, call, assert_same_bits):
    x, factors = normal(rng, 3, 300), normal(rng, 3, 1)
    expected = x.copy()
    ops.scale_rows(expected, factors)
    call("elementwise.scale_rows", structs.SCALE_ROWS, x=x, factors=factors, n=300, rows=3)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("qtype", QTYPES)
def test_get_rows(rng, call, assert_same_bits, qtype):
    ggml_type = GGMLType[qtype.upper()]
    weight = rng.integers(0, 256, (9, ggml_type.row_size(512)), np.uint8)
    tokens, out, expected = np.array([8, 0, 3, 3], np.int32), *np.zeros((2, 4, 512), np.float32)
    with np.errstate(all="ignore"):
        ops.get_rows(ggml_type, weight, tokens, expected)
    sizes = {"dequantize": 0, "row_size": weight.shape[1], "n": 512, "rows": 4}
    call(f"get_rows.get_rows_{qtype}", structs.GET_ROWS, weight=weight, tokens=tokens, out=out, **sizes)
    assert_same_bits(out, expected)
