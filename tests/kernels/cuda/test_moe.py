"""The ops of a mixture of experts: the CUDA kernels against the reference, bit for bit."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.gating import Gating
from gguf_moe_kernels.ref import ops


@pytest.fixture
def check_topk(call, assert_same_bits):
    def check(logits, k, options, bias=None, given=None):
        rows, n_expert = len(logits), logits.shape[1]
        is_apart = bias is not None or options["n_group"] > 1
        scores = np.zeros((rows, options["n_group"]), np.float32) if options["n_group"] > 1 else None
        results = []
        for run in ("reference", "kernel"):
            mine, ids = logits.copy(), np.zeros((rows, k), np.int32)
            weights = np.zeros((rows, k), np.float32)
            selection = np.zeros_like(mine) if is_apart else None
            if run == "reference":
                ops.moe_topk(
                    mine, ids, weights, **options, selection=selection, group_scores=scores, bias=bias,
                    given=None if given is None else given[:, :k],
                )  # fmt: skip
            else:
                arrays = {"selection": selection if is_apart else mine, "bias": 0 if bias is None else bias}
                arrays["group_scores"] = 0 if scores is None else np.zeros_like(scores)
                arrays["given"] = 0 if given is None else given
                arrays["given_stride"] = 0 if given is None else given.strides[0]
                sizes = {"n_expert": n_expert, "k": k, "rows": rows}
                call(
                    "moe.moe_topk", structs.MOE_TOPK, logits=mine, ids=ids, weights=weights,
                    **arrays, **sizes, **options,
                )  # fmt: skip
            results.append((mine, ids, weights, selection if is_apart else mine))
        for actual, expected in zip(results[1], results[0], strict=True):
            assert_same_bits(actual, expected)

    return check


@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(("n_expert", "k"), [(4, 2), (8, 8), (60, 4), (1, 1), (128, 8)])
def test_moe_topk(rng, check_topk, gating, normalize, n_expert, k):
    logits = normal(rng, 6, n_expert)
    logits[1] = 0.25  # all the same
    logits[2, : n_expert // 2] = logits[2, -1]
    logits[3] = -100.0  # sigmoids so small that the smallest sum counts
    options = {
        "gating": gating,
        "normalize": normalize,
        "weights_scale": 2.5,
        "n_group": 1,
        "n_group_used": 1,
    }
    check_topk(logits, k, options)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("n_group", "n_group_used"), [(1, 1), (4, 2), (4, 1), (8, 8)])
def test_moe_topk_with_bias_and_groups(rng, check_topk, has_bias, n_group, n_group_used):
    logits, bias = normal(rng, 6, 32), normal(rng, 32) if has_bias else None
    logits[1] = 0.25
    options = {"gating": Gating.SIGMOID, "normalize": 1, "weights_scale": 2.5}
    check_topk(logits, 4, options | {"n_group": n_group, "n_group_used": n_group_used}, bias)


@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
def test_moe_topk_with_given_ids(rng, check_topk, gating):
    given = np.int32([[5, 0, 39, -1, -1], [1, 2, 3, -1, -1]])
    options = {"gating": gating, "normalize": 1, "weights_scale": 1.0, "n_group": 1, "n_group_used": 1}
    check_topk(normal(rng, 2, 40), 3, options, given=given)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_moe_topk_shows_what_is_not_finite(rng, call, bad):
    logits, ids, weights = normal(rng, 2, 40), np.full((2, 4), -1, np.int32), np.zeros((2, 4), np.float32)
    logits[1, 7] = bad
    others = {"n_expert": 40, "k": 4, "n_group": 1, "n_group_used": 1, "normalize": 1, "weights_scale": 1.0}
    others |= {"given": 0, "given_stride": 0}
    call(
        "moe.moe_topk", structs.MOE_TOPK, logits=logits, selection=logits, bias=0, group_scores=0, ids=ids,
        weights=weights, gating=Gating.SOFTMAX, rows=2, **others,
    )  # fmt: skip
    assert np.isfinite(weights[0]).all()
    assert np.isnan(weights[1]).all()
    assert ((ids >= 0) & (ids < 40)).all()


@pytest.mark.parametrize(
    ("rows", "k", "n_expert"), [(1, 8, 128), (1, 2, 4), (32, 8, 40), (60, 8, 16), (70, 4, 300), (300, 2, 8)]
)
def test_expert_rows(rng, call, rows, k, n_expert):
    ids = np.array([rng.permutation(n_expert)[:k] for _ in range(rows)], np.int32)

    def outputs():
        sizes = {"used": n_expert, "first": n_expert + 1, "counts": n_expert, "token": rows * k}
        arrays = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        return arrays | {"place": np.zeros((rows, k), np.int32), "n_used": np.zeros(1, np.int64)}

    actual, expected = outputs(), outputs()
    call("moe.expert_rows", structs.EXPERT_ROWS, ids=ids, n_expert=n_expert, k=k, rows=rows, **actual)
    ops.expert_rows(ids, **expected)
    for name in ("n_used", "used", "first", "token", "place"):
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def random_places(rng, rows, k):
    return rng.permutation(rows * k).reshape(rows, k).astype(np.int32)


def test_add_id(rng, call, assert_same_bits):
    x, bias, place = normal(rng, 6, 300), normal(rng, 8, 300), random_places(rng, 3, 2)
    ids, expected = np.array([[7, 0], [1, 2], [7, 1]], np.int32), x.copy()
    ops.add_id(expected, bias, ids, place)
    call("moe.add_id", structs.ADD_ID, x=x, bias=bias, ids=ids, place=place, k=2, n=300, rows=3)
    assert_same_bits(x, expected)


def test_scale_id(rng, call, assert_same_bits):
    x, scale, place = normal(rng, 6, 300), normal(rng, 8), random_places(rng, 3, 2)
    ids, expected = np.array([[7, 0], [1, 2], [7, 1]], np.int32), x.copy()
    ops.scale_id(expected, scale, ids, place)
    call("moe.scale_id", structs.SCALE_ID, x=x, scale=scale, ids=ids, place=place, k=2, n=300, rows=3)
    assert_same_bits(x, expected)


def test_weigh(rng, call, assert_same_bits):
    x, weights, place = normal(rng, 3, 300), normal(rng, 3, 2), random_places(rng, 3, 2)
    out, expected = np.zeros((2, 6, 300), np.float32)
    ops.weigh(x, place, weights, expected)
    call("moe.weigh", structs.WEIGH, x=x, place=place, weights=weights, out=out, k=2, n=300, rows=3)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("has_weights", [False, True])
@pytest.mark.parametrize("has_shared", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_moe_sum(rng, call, assert_same_bits, has_weights, has_shared, has_residual):
    x, weights, place = normal(rng, 12, 300), normal(rng, 3, 4), random_places(rng, 3, 4)
    shared, residual = normal(rng, 3, 300), normal(rng, 3, 300)
    added = {"shared": shared if has_shared else None, "residual": residual if has_residual else None}
    out, expected = np.zeros((3, 300), np.float32), np.zeros((3, 300), np.float32)
    ops.moe_sum(x, place, weights if has_weights else None, expected, **added)
    addresses = {name: 0 if array is None else array for name, array in added.items()}
    addresses["weights"] = weights if has_weights else 0
    call("moe.moe_sum", structs.MOE_SUM, x=x, place=place, k=4, n=300, out=out, rows=3, **addresses)
    assert_same_bits(out, expected)


def test_shexp_gate(rng, call, assert_same_bits):
    x, weight, out = normal(rng, 3, 333), normal(rng, 333), normal(rng, 3, 300)
    expected = out.copy()
    ops.shexp_gate(x, weight, expected)
    call("moe.shexp_gate", structs.SHEXP_GATE, x=x, weight=weight, n_in=333, out=out, n=300, rows=3)
    assert_same_bits(out, expected)
