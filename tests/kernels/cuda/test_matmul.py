"""Weights times activations: the CUDA kernels against the reference, bit for bit."""

import numpy as np
import pytest
from weight_rows import QTYPES, random_activations, random_rows

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import matmul, ops


def matmul_arguments(weight, x, out, n, rows, **others):
    arguments = {
        "tile": 0,
        "chunk_rows": 0,
        "one_token_rows": 0,
        "least_rows": 0,
        "n_threads": 0,
        "bias": 0,
        "residual": 0,
    } | others
    arrays = {"weight": weight, "x": x, "out": out}
    sizes = {"row_size": weight.shape[1], "n_out": len(weight), "n_in": n, "x_stride": x.strides[0]}
    return arrays | sizes | {"rows": rows} | arguments


def call_matmul(call, qtype, weight, x, out, n, rows, **others):
    arguments = matmul_arguments(weight, x, out, n, rows, **others)
    call(f"matmul.matmul_{qtype.name.lower()}", structs.MATMUL, **arguments)


def sizes_of(qtype):
    """Lengths of a row that end inside a four of blocks, and inside what a warp takes at a time."""
    size = qtype.block_size
    return {1: (8, 77, 256), 32: (32, 96, 1184), 64: (64, 192, 1216), 256: (256, 1792)}[size]


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda q: q.name.lower())
def test_matmul(rng, call, assert_same_bits, qtype):
    for n in sizes_of(qtype):
        for rows in (1, 3, 6):
            weight, x = random_rows(rng, qtype, 19, n), random_activations(rng, qtype, rows, n)
            out, expected = np.full((rows, 19), np.nan, np.float32), np.zeros((rows, 19), np.float32)
            matmul.matmul(qtype, weight, x, expected)
            call_matmul(call, qtype, weight, x, out, n, rows)
            assert_same_bits(out, expected)


def test_bias_residual_and_surplus_rows(rng, call, assert_same_bits):
    qtype = GGMLType.Q8_0
    weight, x = random_rows(rng, qtype, 37, 256), random_activations(rng, qtype, 9, 256)
    bias, residual = rng.standard_normal(37, np.float32), rng.standard_normal((9, 37), np.float32)
    out, expected = np.full((2, 9, 37), np.nan, np.float32)
    matmul.matmul(qtype, weight, x, expected, bias, residual)
    call_matmul(call, qtype, weight, x, out, 256, rows=5, largest_rows=9, bias=bias, residual=residual)
    assert_same_bits(out[:5], expected[:5])
    assert np.isnan(out[5:]).all()


@pytest.mark.parametrize("n_parts", [2, 3])
def test_matmuls_next_to_each_other(rng, call, assert_same_bits, n_parts):
    qtype, n = GGMLType.Q4_K, 512
    parts, nothing = {}, dict.fromkeys(structs.MATMUL.names, 0)
    expected = []
    for name, n_out in zip(("first", "second", "third")[:n_parts], (37, 16, 5), strict=False):
        weight, x = random_rows(rng, qtype, n_out, n), random_activations(rng, qtype, 2, n)
        bias, out = rng.standard_normal(n_out, np.float32), np.zeros((2, n_out), np.float32)
        expected.append(np.zeros((2, n_out), np.float32))
        matmul.matmul(qtype, weight, x, expected[-1], bias)
        parts[name] = matmul_arguments(weight, x, out, n, 2, bias=bias)
    call("matmul.matmul_3_q4_k", structs.MATMUL_3, largest_rows=2, **{"third": nothing} | parts)
    for part, result in zip(parts.values(), expected, strict=True):
        assert_same_bits(part["out"], result)


def _addresses(device, arrays):
    return np.array([0 if array is None else device.address(array) for array in arrays], np.int64)


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda q: q.name.lower())
@pytest.mark.parametrize("has_index", [False, True])
def test_matmul_id(rng, call, device, assert_same_bits, qtype, has_index):
    """Three of five experts are used; one of them is not on the device, and one has another type."""
    n, n_out, other = 1024, 19, GGMLType.F16 if qtype is not GGMLType.F16 else GGMLType.F32
    x = random_activations(rng, qtype, 8, n)
    used, first = np.array([1, 2, 4, 0, 0], np.int32), np.array([0, 3, 4, 6, 0, 0], np.int32)
    x_index = np.array([5, 0, 7, 2, 2, 1], np.int32)
    weights = [None if e == 2 else random_rows(rng, qtype, n_out, n) for e in range(5)]
    out, expected = np.full((6, n_out), np.nan, np.float32), np.full((6, n_out), np.nan, np.float32)
    matmul.matmul_id(
        [qtype] * 5,
        [weights[1] if w is None else w for w in weights],
        {ACTIVATION_FORMAT[qtype]: x},
        expected,
        used,
        3,
        first,
        x_index if has_index else None,
    )
    expected[3] = np.nan
    types = np.array([qtype] * 5, np.int64)
    places = {"used": used, "n_used": np.array([3], np.int64), "first": first}
    places |= {"x_index": x_index if has_index else 0}

    def run():
        arguments = _matmul_id_arguments(device, qtype, types, weights, x, out)
        call(
            f"matmul.matmul_id_{qtype.name.lower()}",
            structs.MATMUL_ID,
            largest_rows=8,
            **arguments,
            **places,
        )

    run()
    assert_same_bits(out, expected)
    types[4], out[4:], expected[4:] = other, np.nan, np.nan
    run()
    assert_same_bits(out, expected)


def _matmul_id_arguments(device, qtype, types, weights, x, out):
    """All but the places."""
    n_out, row_size = next(w.shape for w in weights if w is not None)
    return {
        "tiles": types,
        "weights": _addresses(device, weights),
        "row_sizes": np.full(len(weights), row_size, np.int64),
        "n_expert": len(weights),
        "n_out": n_out,
        "n_in": row_size // qtype.type_size * qtype.block_size,
        "x": _addresses(device, [x] * len(weights)),
        "x_stride": np.full(len(weights), x.strides[0], np.int64),
        "out": out,
        "chunk_rows": 0,
        "one_token_rows": 0,
        "least_rows": 0,
        "n_threads": 0,
    }


@pytest.mark.parametrize(
    "qtype", [q for q in QTYPES if q.name in ("F16", "Q8_0", "Q4_K", "Q6_K")], ids=lambda q: q.name.lower()
)
def test_gate_and_up_in_one(rng, call, device, assert_same_bits, qtype):
    """Of three places the middle one's expert is not on the device."""
    n, n_out = 512, 19
    x, types = random_activations(rng, qtype, 2, n), np.array([qtype] * 4, np.int64)
    gate, up = ([None if e == 2 else random_rows(rng, qtype, n_out, n) for e in range(4)] for _ in "gu")
    out, other, expected = np.full((3, 3, n_out), np.nan, np.float32)
    index = np.array([1, 0, 0], np.int32)
    for place, expert in ((0, 1), (2, 3)):
        rows = x[index[place]][None]
        a, b = np.zeros((2, 1, n_out), np.float32)
        matmul.matmul(qtype, gate[expert], rows, a)
        matmul.matmul(qtype, up[expert], rows, b)
        ops.swiglu(a, b)
        expected[place] = a
    places = {"used": np.array([1, 2, 3, 0], np.int32), "first": np.array([0, 1, 2, 3, 0], np.int32)}
    places |= {"n_used": np.array([3], np.int64), "x_index": index}
    call(
        f"matmul.matmul_id_swiglu_{qtype.name.lower()}",
        structs.MATMUL_ID_SWIGLU,
        gate=_matmul_id_arguments(device, qtype, types, gate, x, out) | places,
        up=_matmul_id_arguments(device, qtype, types, up, x, other) | places,
        largest_rows=3,
    )
    assert_same_bits(out, expected)
