"""The ops on parts of rows: the kernel against the reference, bit for bit."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, matmul, ops

ROWS, N_HEAD, N_OUT, WIDTH = 3, 4, 40, 272


@pytest.mark.parametrize("qtype", [GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K], ids=lambda q: q.name)
def test_each_head_meets_its_own_matrix(rng, library, call_op, random_rows, assert_same_bits, qtype):
    n, activation = 256, ACTIVATION_FORMAT[qtype]
    weight, x = random_rows(rng, qtype, N_HEAD * N_OUT, n), normal(rng, ROWS, N_HEAD, WIDTH)
    heads = x[..., :n]
    if activation is not ActivationFormat.F32:
        x = np.zeros((ROWS, N_HEAD, activation.row_size(n)), np.uint8)
        call_op(
            f"activation.quantize_heads_{activation.value}",
            structs.QUANTIZE_HEADS,
            x=(wide := normal(rng, ROWS, N_HEAD, WIDTH)),
            width=WIDTH,
            n=n,
            n_head=N_HEAD,
            out=x,
            out_stride=x.strides[1],
            rows=ROWS,
        )
        heads = activations.quantize(activation, wide[..., :n].reshape(-1, n)).reshape(x.shape)
        assert_same_bits(x, heads)
    out, expected = np.zeros((2, ROWS, N_HEAD, N_OUT), np.float32)
    call_op(
        "matmul.matmul_heads",
        structs.MATMUL_HEADS,
        tile=library.address(f"{qtype.name.lower()}.tile"),
        weight=weight,
        row_size=qtype.row_size(n),
        n_out=N_OUT,
        n_in=n,
        n_head=N_HEAD,
        x=x,
        x_stride=x.strides[1],
        out=out,
        rows=ROWS,
        chunk_rows=32,
        n_threads=2,
    )
    matmul.matmul_heads(qtype, weight.reshape(N_HEAD, N_OUT, -1), heads, expected)
    assert_same_bits(out, expected)


def test_concat_takes_the_end_of_the_second(rng, call_op, assert_same_bits):
    a, b = normal(rng, ROWS, N_HEAD * 5), normal(rng, ROWS, N_HEAD * 7)
    out, expected = np.zeros((2, ROWS, N_HEAD * 8), np.float32)
    sizes = {"n_head": N_HEAD, "n_b": 3}
    call_op("elementwise.concat", structs.CONCAT, a=a, n_a=5, b=b, b_width=7, out=out, rows=ROWS, **sizes)
    ops.concat(a, b, expected, **sizes)
    assert_same_bits(out, expected)


def test_parts_go_where_they_belong(rng, call_op, assert_same_bits):
    x, out = normal(rng, ROWS, 43), normal(rng, ROWS, 20)
    expected = out.copy()
    sizes = {"n_head": N_HEAD, "n": 3, "first": 2, "stride": 10, "out_first": 5}
    call_op("elementwise.parts", structs.PARTS, x=x, x_width=43, out=out, out_width=20, rows=ROWS, **sizes)
    ops.parts(x, expected, **sizes)
    assert_same_bits(out, expected)
    assert_same_bits(out[:, 8:11], x[:, 12:15])


def test_sigmoid_mul(rng, call_op, assert_same_bits):
    x, gate = normal(rng, ROWS, 37), 4 * normal(rng, ROWS, 37)
    truth, expected = x / (1 + np.exp(-gate.astype(float))), x.copy()
    call_op("elementwise.sigmoid_mul", structs.SIGMOID_MUL, x=x, gate=gate, n=37, rows=ROWS)
    ops.sigmoid_mul(expected, gate)
    assert_same_bits(x, expected)
    np.testing.assert_allclose(x, truth, rtol=1e-5)


def test_scale_rows(rng, call_op, assert_same_bits):
    x, factors = normal(rng, ROWS, 37), normal(rng, ROWS, 1)
    expected = x.copy()
    call_op("elementwise.scale_rows", structs.SCALE_ROWS, x=x, factors=factors, n=37, rows=ROWS)
    ops.scale_rows(expected, factors)
    assert_same_bits(x, expected)
