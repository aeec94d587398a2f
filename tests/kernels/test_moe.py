"""The ops of a mixture of experts: the kernel against the reference, bit for bit."""

import numpy as np
import pytest
from arrays import empty, normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
from gguf_moe_kernels.gating import Gating
from gguf_moe_kernels.quants import GGMLType
from gguf_moe_kernels.ref import activations, matmul, ops

Q4_K, Q8_0, F16 = GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16


def address(array):
    return array.__array_interface__["data"][0]


NO_GROUPS = {"n_group": 1, "n_group_used": 1}


def inside_of_rows(given):
    """Ids as they are given for one of several layers: each row is followed by others'."""
    array = np.full((len(given), 5 * given.shape[1]), -1, np.int32)
    array[:, : given.shape[1]] = given
    return {"given": array, "given_stride": array.strides[0]}


@pytest.fixture
def topk(call_op):
    """Runs the kernel; returns the ids, the weights and what was chosen by."""

    def run(logits, k, options, bias=None, given=None):
        ids, weights = empty(len(logits), k, dtype=np.int32), empty(len(logits), k)
        n_group, n_expert, rows = options["n_group"], logits.shape[1], len(logits)
        selection = logits if bias is None and n_group == 1 else empty(rows, n_expert)
        arrays = {"logits": logits, "selection": selection, "ids": ids, "weights": weights}
        arrays["bias"] = 0 if bias is None else bias
        arrays["group_scores"] = empty(rows, n_group) if n_group > 1 else 0
        arrays |= {"given": 0, "given_stride": 0} if given is None else inside_of_rows(given)
        call_op("moe.moe_topk", structs.MOE_TOPK, n_expert=n_expert, k=k, rows=rows, **arrays, **options)
        return ids, weights, selection

    return run


@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(("n_expert", "k"), [(4, 2), (8, 8), (60, 4), (1, 1)])
def test_moe_topk(rng, topk, assert_same_bits, gating, normalize, n_expert, k):
    logits = normal(rng, 6, n_expert)
    logits[1] = 0.25  # all the same
    logits[2, : n_expert // 2] = logits[2, -1]
    logits[3] = -100.0  # sigmoids so small that the smallest sum counts
    logits[4] += 30.0  # sigmoids that are all 1
    options = {"gating": gating, "normalize": normalize, "weights_scale": 2.5} | NO_GROUPS
    changed, ids, weights = logits.copy(), empty(6, k, dtype=np.int32), empty(6, k)
    ops.moe_topk(changed, ids, weights, **options)
    got_ids, got_weights, _ = topk(logits, k, options)
    np.testing.assert_array_equal(got_ids, ids)
    assert_same_bits(got_weights, weights)
    assert_same_bits(logits, changed)
    assert list(ids[1]) == list(range(k))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("n_group", "n_group_used"), [(1, 1), (4, 2), (4, 1), (8, 8)])
def test_moe_topk_with_bias_and_groups(rng, topk, assert_same_bits, has_bias, n_group, n_group_used):
    logits, bias = normal(rng, 6, 32), normal(rng, 32) if has_bias else None
    logits[1] = 0.25  # all the same
    options = {"gating": Gating.SIGMOID, "normalize": 1, "weights_scale": 2.5}
    options |= {"n_group": n_group, "n_group_used": n_group_used}
    changed, ids, weights = logits.copy(), empty(6, 4, dtype=np.int32), empty(6, 4)
    selection = empty(6, 32) if has_bias or n_group > 1 else None
    scores = empty(6, n_group) if n_group > 1 else None
    ops.moe_topk(changed, ids, weights, **options, selection=selection, group_scores=scores, bias=bias)
    got_ids, got_weights, got_selection = topk(logits, 4, options, bias)
    np.testing.assert_array_equal(got_ids, ids)
    assert_same_bits(got_weights, weights)
    assert_same_bits(logits, changed)
    if selection is not None:
        assert_same_bits(got_selection, selection)


@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
def test_given_ids_get_the_weights_that_the_router_has_for_them(rng, topk, assert_same_bits, gating):
    logits, given = normal(rng, 3, 16), np.int32([[5, 0, 15], [1, 2, 3], [7, 7, 4]])
    options = {"gating": gating, "normalize": 1, "weights_scale": 1.0} | NO_GROUPS
    ids, weights = empty(3, 3, dtype=np.int32), empty(3, 3)
    ops.moe_topk(logits.copy(), ids, weights, **options, given=given)
    np.testing.assert_array_equal(ids, given)
    got_ids, got_weights, _ = topk(logits.copy(), 3, options, given=given)
    np.testing.assert_array_equal(got_ids, given)
    assert_same_bits(got_weights, weights)
    is_sigmoid = gating in (Gating.SIGMOID, Gating.SIGMOID_WEIGHT)
    scores = 1 / (1 + np.exp(-logits)) if is_sigmoid else np.exp(logits)
    expected = np.take_along_axis(scores, given, 1)
    np.testing.assert_allclose(weights, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)


def test_logits_choose_where_the_sigmoid_comes_later(topk):
    logits = np.float32([[20, 30, 25, -1]])  # the sigmoids of three are 1
    options = {"gating": Gating.SIGMOID_WEIGHT, "normalize": 0, "weights_scale": 1.0} | NO_GROUPS
    ids, weights, _ = topk(logits, 2, options)
    assert ids.tolist() == [[1, 2]]
    assert weights.tolist() == [[1, 1]]


def test_weigh(rng, call_op, assert_same_bits):
    x, weights = normal(rng, 3, 37), normal(rng, 3, 2)
    place = np.int32([[4, 0], [1, -1], [2, 3]])
    out, expected = np.zeros((2, 6, 37), np.float32)
    call_op("moe.weigh", structs.WEIGH, x=x, place=place, weights=weights, out=out, k=2, n=37, rows=3)
    ops.weigh(x, place, weights, expected)
    assert_same_bits(out, expected)
    assert_same_bits(out[4], weights[0, 0] * x[0])
    assert not out[5].any()


def test_the_bias_chooses_but_does_not_weigh(topk):
    logits = np.float32([[0, 1, 2, 3]])
    bias = np.float32([10, 0, 0, -10])
    options = {"gating": Gating.SIGMOID, "normalize": 0, "weights_scale": 1.0} | NO_GROUPS
    ids, weights, _ = topk(logits.copy(), 2, options, bias)
    assert ids.tolist() == [[0, 2]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, [0, 2]])), rtol=1e-6)


def test_a_group_counts_by_its_two_best(topk):
    logits = np.float32([[9, -9, -9, 4, 4, 3.9, 3, 0, 0]])  # of three groups the second is the best
    options = {"gating": Gating.SOFTMAX_WEIGHT, "normalize": 0, "weights_scale": 1.0}
    ids, _, _ = topk(logits.copy(), 2, options | {"n_group": 3, "n_group_used": 1})
    assert ids.tolist() == [[3, 4]]
    ids, _, _ = topk(logits.copy(), 2, options | {"n_group": 3, "n_group_used": 2})
    assert ids.tolist() == [[3, 4]]  # the third group is better than the first, whose second best is bad


@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
@pytest.mark.parametrize("n_group", [1, 4])
@pytest.mark.parametrize("where", [slice(None), slice(0, 1), slice(3, 5)])
def test_experts_chosen_by_nan_exist(rng, topk, gating, where, n_group):
    logits = normal(rng, 1, 8)
    logits[0, where] = np.nan
    groups = {"n_group": n_group, "n_group_used": 2 if n_group > 1 else 1}
    ids, weights, _ = topk(logits, 4, {"gating": gating, "normalize": 1, "weights_scale": 1.0} | groups)
    assert ((ids >= 0) & (ids < 8)).all()
    assert np.isnan(weights).all()


PLACES = {"used": 8, "n_used": 1, "first": 9, "counts": 8, "token": 20}


def sorted_by_expert(ids):
    arrays = {name: empty(n, dtype=np.int64 if name == "n_used" else np.int32) for name, n in PLACES.items()}
    arrays["place"] = np.zeros_like(ids)
    ops.expert_rows(ids, **arrays)
    return arrays


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_expert_rows(rng, call_op, rows):
    ids = np.stack([rng.permutation(8)[:2] for _ in range(rows)]).astype(np.int32)
    ids[ids == 5] = 4  # an expert that nobody chose
    expected = sorted_by_expert(ids)
    arrays = {name: np.zeros_like(array) for name, array in expected.items()}
    call_op("moe.expert_rows", structs.EXPERT_ROWS, ids=ids, n_expert=8, k=2, rows=rows, **arrays)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    for u, expert in enumerate(expected["used"][: expected["n_used"][0]]):
        for p in range(expected["first"][u], expected["first"][u + 1]):
            token = expected["token"][p]
            assert expert in ids[token]
            assert p in expected["place"][token]


@pytest.mark.parametrize(("n", "k"), [(32, 2), (77, 1), (50, 4)])
def test_add_id(rng, call_op, assert_same_bits, n, k):
    x, bias = normal(rng, 3 * k, n), normal(rng, 8, n)
    ids = np.stack([rng.permutation(8)[:k] for _ in range(3)]).astype(np.int32)
    place = rng.permutation(3 * k).astype(np.int32).reshape(3, k)
    before, expected = x.copy(), x.copy()
    ops.add_id(expected, bias, ids, place)
    call_op("moe.add_id", structs.ADD_ID, x=x, bias=bias, ids=ids, place=place, k=k, n=n, rows=3)
    assert_same_bits(x, expected)
    assert_same_bits(x[place[1, 0]], before[place[1, 0]] + bias[ids[1, 0]])


def test_scale_id(rng, call_op, assert_same_bits):
    x, scale = normal(rng, 6, 50), normal(rng, 8)
    ids, place = np.int32([[7, 0], [1, 2], [7, 1]]), np.int32([[3, 0], [-1, 4], [5, 1]])
    before, expected = x.copy(), x.copy()
    ops.scale_id(expected, scale, ids, place)
    call_op("moe.scale_id", structs.SCALE_ID, x=x, scale=scale, ids=ids, place=place, k=2, n=50, rows=3)
    assert_same_bits(x, expected)
    assert_same_bits(x[3], before[3] * scale[7])
    assert_same_bits(x[2], before[2])


@pytest.mark.parametrize(("n", "k"), [(32, 2), (77, 1), (50, 4)])
@pytest.mark.parametrize("added", [(), ("residual",), ("shared",), ("shared", "residual")])
def test_moe_sum(rng, call_op, assert_same_bits, n, k, added):
    x, weights = normal(rng, 3 * k, n), normal(rng, 3, k)
    place, out, expected = rng.permutation(3 * k).astype(np.int32).reshape(3, k), empty(3, n), empty(3, n)
    addends = {name: normal(rng, 3, n) for name in added}
    arrays = {"x": x, "place": place, "weights": weights}
    absent = {"shared": 0, "residual": 0}
    call_op("moe.moe_sum", structs.MOE_SUM, k=k, n=n, out=out, rows=3, **arrays, **(absent | addends))
    ops.moe_sum(out=expected, **arrays, **addends)
    assert_same_bits(out, expected)


def test_moe_sum_without_weights(rng, call_op, assert_same_bits):
    x, place = normal(rng, 4, 5), np.int32([[3, 0], [1, 2]])
    out, expected = empty(2, 5), empty(2, 5)
    absent = {"weights": 0, "shared": 0, "residual": 0}
    call_op("moe.moe_sum", structs.MOE_SUM, x=x, place=place, k=2, n=5, out=out, rows=2, **absent)
    ops.moe_sum(x, place, None, expected)
    assert_same_bits(out, expected)
    assert_same_bits(out[1], x[1] + x[2])


def test_moe_sum_adds_all(rng):
    x, weights, out = normal(rng, 4, 5), normal(rng, 2, 2), empty(2, 5)
    place, shared, residual = np.array([[3, 0], [1, 2]]), normal(rng, 2, 5), normal(rng, 2, 5)
    ops.moe_sum(x, place, weights, out, shared, residual)
    truth = weights[1, 0] * x[1] + weights[1, 1] * x[2] + shared[1] + residual[1]
    np.testing.assert_allclose(out[1], truth, rtol=1e-5)


@pytest.mark.parametrize(("n_in", "n"), [(32, 64), (77, 5)])
def test_shexp_gate(rng, call_op, assert_same_bits, n_in, n):
    x, weight, out = normal(rng, 3, n_in), normal(rng, n_in), normal(rng, 3, n)
    before, expected = out.copy(), out.copy()
    call_op("moe.shexp_gate", structs.SHEXP_GATE, x=x, weight=weight, n_in=n_in, out=out, n=n, rows=3)
    ops.shexp_gate(x, weight, expected)
    assert_same_bits(out, expected)
    gate = 1 / (1 + np.exp(-(x.astype(float) @ weight)))
    np.testing.assert_allclose(out, gate[:, None] * before, rtol=1e-5)


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("ids", [[[0, 2], [7, 2], [2, 1], [4, 7]], [[5, 3]]])
def test_matmul_id_of_experts_that_differ_in_type(
    rng, library, call_op, random_rows, assert_same_bits, gather, ids
):
    qtypes = (Q4_K, Q8_0, F16, Q4_K, Q8_0, F16, Q4_K, Q8_0)
    weights = [random_rows(rng, qtype, 6, 256) for qtype in qtypes]
    ids = np.array(ids, np.int32)
    places = sorted_by_expert(ids)
    x_f32 = normal(rng, len(ids) if gather else ids.size, 256)
    x = {ActivationFormat.F32: x_f32}
    x |= {a: activations.quantize(a, x_f32) for a in (ActivationFormat.Q8_0, ActivationFormat.Q8_K)}
    mine = [x[ACTIVATION_FORMAT[qtype]] for qtype in qtypes]
    out, expected = empty(ids.size, 6), empty(ids.size, 6)
    call_op(
        "matmul.matmul_id",
        structs.MATMUL_ID,
        tiles=np.array([library.address(f"{qtype.name.lower()}.tile") for qtype in qtypes]),
        weights=np.array([address(w) for w in weights]),
        row_sizes=np.array([w.shape[1] for w in weights]),
        n_expert=len(qtypes),
        n_out=6,
        n_in=256,
        x=np.array([address(a) for a in mine]),
        x_stride=np.array([a.strides[0] for a in mine]),
        x_index=places["token"] if gather else 0,
        out=out,
        used=places["used"],
        n_used=places["n_used"],
        first=places["first"],
        chunk_rows=4,
        one_token_rows=7,
        least_rows=5,
        n_threads=3,
    )
    x_index = places["token"] if gather else None
    used, n_used, first = places["used"], int(places["n_used"][0]), places["first"]
    matmul.matmul_id(qtypes, weights, x, expected, used, n_used, first, x_index)
    assert_same_bits(out, expected)
