"""Down matrices that come over the link, and hidden activations that come from the CPU."""

import numpy as np
import pytest

from gguf_moe_kernels import structs

N_EXPERT, K = 6, 4


@pytest.fixture
def missing_place():
    """Of choices 5, 0, 3, 2 the GPU lacks 5 and 3."""
    return np.array([[1, -1, 0, -1]], np.int32)


IDS = np.array([[5, 0, 3, 2]], np.int32)


@pytest.mark.parametrize("aborted", [0, 1])
def test_missing_matrices_are_copied_and_found(call, device, rng, missing_place, aborted):
    nbytes = 16 * 70_001  # more than one round of all blocks, and odd
    matrices = rng.integers(0, 256, (N_EXPERT, nbytes), np.uint8)
    first = device.address(matrices)
    target, table = np.zeros((K, nbytes), np.uint8), np.full(N_EXPERT, -7, np.int64)
    call(
        "link.fetch_missing", structs.FETCH_MISSING, ids=IDS, missing_place=missing_place, k=K, rows=1,
        weights=np.array([first + e * nbytes for e in range(N_EXPERT)], np.int64), nbytes=nbytes,
        target=target, table=table, n_expert=N_EXPERT, aborted=np.array([aborted], np.int64),
    )  # fmt: skip
    if aborted:
        assert not target.any()
        return
    np.testing.assert_array_equal(target[:2], matrices[[3, 5]])
    assert not target[2:].any()
    assert (table[[0, 1, 2, 4]] == 0).all()
    assert table[5] - table[3] == nbytes


@pytest.mark.parametrize(("answered", "n_missing"), [(True, 2), (False, 2), (True, 0)])
def test_what_the_cpu_made_fills_the_free_rows(call, rng, missing_place, answered, n_missing):
    x_missing, x = (rng.integers(0, 256, (K, 4 * 301), np.uint8) for _ in range(2))
    place, before = np.array([[3, 0, 2, 1]], np.int32), x.copy()
    words = {name: np.zeros(1, np.int64) for name in ("aborted", "answer", "abort", "heartbeat", "ready")}
    words["answer"][0], words["abort"][0] = 5 * answered, not answered
    call(
        "link.receive", structs.RECEIVE, x_missing=x_missing, x=x, x_size=4 * 301, place=place, rows=1,
        missing_place=missing_place, k=K, n_missing=np.array([n_missing], np.int64), step=5,
        limit=10**9, waited=np.zeros(1, np.int64), **words,
    )  # fmt: skip
    expected = before.copy()
    if answered and n_missing:
        expected[[3, 2]] = x_missing[[1, 0]]
    np.testing.assert_array_equal(x, expected)
    assert words["aborted"][0] == (not answered)
