"""Weights times many rows of activations: the CUDA kernels against the reference, bit for bit."""

import numpy as np
import pytest
from weight_rows import QTYPES, random_activations, random_rows

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import matmul


def sizes_of(qtype):
    """Lengths of a row whose partial sums have different numbers of blocks."""
    return {1: (77,), 32: (1376,), 64: (1408,), 256: (1792,)}[qtype.block_size]


def call_matmul(call, qtype, weight, x, out, n, rows, **others):
    arguments = {
        "tile": 0,
        "chunk_rows": 0,
        "one_token_rows": 0,
        "least_rows": 0,
        "n_threads": 0,
        "bias": 0,
        "residual": 0,
    } | others
    call(
        f"many_tokens.matmul_{qtype.name.lower()}", structs.MATMUL, weight=weight, row_size=weight.shape[1],
        n_out=len(weight), n_in=n, x=x, x_stride=x.strides[0], out=out, rows=rows, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda q: q.name.lower())
def test_matmul(rng, call, assert_same_bits, qtype):
    for n in sizes_of(qtype):
        weight, x = random_rows(rng, qtype, 53, n), random_activations(rng, qtype, 70, n)
        out, expected = np.full((70, 53), np.nan, np.float32), np.zeros((70, 53), np.float32)
        matmul.matmul(qtype, weight, x, expected)
        call_matmul(call, qtype, weight, x, out, n, 70)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("qtype", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F32], ids=lambda q: q.name.lower())
def test_bias_residual_and_surplus_rows(rng, call, assert_same_bits, qtype):
    weight, x = random_rows(rng, qtype, 130, 256), random_activations(rng, qtype, 9, 256)
    bias, residual = rng.standard_normal(130, np.float32), rng.standard_normal((9, 130), np.float32)
    for others in ({}, {"bias": bias, "residual": residual}):
        out, expected = np.full((2, 9, 130), np.nan, np.float32)
        matmul.matmul(qtype, weight, x, expected, **others)
        call_matmul(call, qtype, weight, x, out, 256, rows=5, largest_rows=99, **others)
        assert_same_bits(out[:5], expected[:5])
        assert np.isnan(out[5:]).all()


@pytest.mark.parametrize(
    ("qtype", "has_index"), [(GGMLType.Q4_K, False), (GGMLType.Q6_K, True), (GGMLType.Q8_0, True)]
)
def test_matmul_id(rng, call, device, assert_same_bits, qtype, has_index):
    """Of 40 experts 36 are used: one by many places, one not on the device, and one of another type."""
    n, n_out, counts = 256, 6, np.r_[np.full(33, 1), 150, 3, 2]
    n_places, used = counts.sum(), np.r_[np.arange(1, 37), [0] * 4].astype(np.int32)
    first = np.zeros(41, np.int32)
    first[1:37] = np.cumsum(counts)
    x = random_activations(rng, qtype, n_places, n)
    x_index = rng.permutation(n_places).astype(np.int32)
    weights = [random_rows(rng, qtype, n_out, n) for _ in range(40)]
    out, expected = np.full((2, n_places, n_out), np.nan, np.float32)
    matmul.matmul_id(
        [qtype] * 40, weights, {ACTIVATION_FORMAT[qtype]: x}, expected, used, 36, first,
        x_index if has_index else None,
    )  # fmt: skip
    types = np.array([qtype] * 40, np.int64)
    types[3] = GGMLType.F16 if qtype is not GGMLType.F16 else GGMLType.F32
    addresses = np.array([0 if e == 35 else device.address(w) for e, w in enumerate(weights)], np.int64)
    expected[first[2] : first[3]], expected[first[34] : first[35]] = np.nan, np.nan
    call(
        f"many_tokens.matmul_id_{qtype.name.lower()}", structs.MATMUL_ID, tiles=types, weights=addresses,
        row_sizes=np.full(40, qtype.row_size(n), np.int64), n_expert=40, n_out=n_out, n_in=n,
        x=np.full(40, device.address(x), np.int64), x_stride=np.full(40, x.strides[0], np.int64),
        x_index=x_index if has_index else 0, out=out, used=used, n_used=np.array([36], np.int64), first=first,
        chunk_rows=0, one_token_rows=0, least_rows=0, n_threads=0, largest_rows=n_places,
    )  # fmt: skip
    assert_same_bits(out, expected)
