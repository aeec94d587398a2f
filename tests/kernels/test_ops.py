"""Every op that isn't a tile, attention or about experts: the kernel against the reference, bit for bit."""

import numpy as np
import pytest
from arrays import empty, normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, exact, matmul, ops

Q4_K, Q8_0, F32 = GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F32


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
        one_token_rows=chunk_rows if n == 1 else 7,
        least_rows=3,
        n_threads=n_threads,
        **{name: 0 if array is None else array for name, array in added.items()},
    )
    matmul.matmul(Q8_0, weight, x, expected, **added)
    assert_same_bits(out, expected)


def test_silu_is_near_the_truth(rng):
    x = normal(rng, 1000) * 10
    truth = x / (1 + np.exp(-x.astype(float)))
    np.testing.assert_allclose(exact.silu(x), truth, rtol=1e-6, atol=1e-30)
