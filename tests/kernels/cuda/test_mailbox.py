"""The meeting of GPU and CPU. On a device both sides' memory is the device's."""

import threading
import time

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.ref import ops

SECOND = 1_000_000_000


@pytest.fixture
def post(call):
    """post(ids, missing): what the kernel writes, by name."""

    def run(ids, missing, n_expert=16, aborted=0, step=5):
        weights = np.full(n_expert, 0x1000, np.int64)
        weights[list(missing)] = 0
        rows, k = ids.shape
        x, x_2 = (np.arange(n, dtype=np.uint8) for n in (64 * rows, -(-12 * rows // 16) * 16))
        out = {name: np.full(rows * k, -7, np.int32) for name in ("used", "x_index")}
        out |= {name: np.full((rows, k), -7, np.int32) for name in ("place", "all_ids", "missing_place")}
        out |= {"first": np.full(rows * k + 1, -7, np.int32), "x_out": x * 0, "x_2_out": x_2 * 0}
        out |= {name: np.full(1, -7, np.int64) for name in ("n_used", "n_missing", "sequence")}
        call(
            "mailbox.mailbox_post", structs.MAILBOX_POST, ids=ids, weights=weights, k=k, rows=rows, step=step,
            x=x, x_size=64, x_2=x_2, x_2_size=12, aborted=np.array([aborted], np.int64), **out,
        )  # fmt: skip
        return out | {"x": x, "x_2": x_2}

    return run


@pytest.mark.parametrize("rows", [1, 3])
def test_a_post_lists_the_missing_experts_as_if_they_were_all(rng, post, rows):
    ids = np.array([rng.permutation(16)[:8] for _ in range(rows)], np.int32)
    missing = {int(e) for e in ids[0, ::3]} | {3}
    out = post(ids, missing)
    chosen = [(e, i) for i, row in enumerate(ids.tolist()) for e in row if e in missing]
    in_order = sorted(chosen)
    used = sorted({e for e, _ in chosen})
    n_used = int(out["n_used"][0])
    assert out["used"][:n_used].tolist() == used
    starts = [sum(e < u for e, _ in chosen) for u in used]
    assert out["first"][: n_used + 1].tolist() == [*starts, len(chosen)]
    assert out["x_index"][: len(chosen)].tolist() == [i for _, i in in_order]
    assert out["n_missing"][0] == len(chosen)
    for i, row in enumerate(ids.tolist()):
        wanted = [in_order.index((e, i)) if e in missing else -1 for e in row]
        assert out["place"][i].tolist() == out["missing_place"][i].tolist() == wanted
    np.testing.assert_array_equal(out["all_ids"], ids)
    np.testing.assert_array_equal(out["x_out"], out["x"])
    np.testing.assert_array_equal(out["x_2_out"], out["x_2"])
    assert out["sequence"][0] == 5


def test_a_post_without_misses_is_a_negative_number_and_nothing_else(post):
    out = post(np.array([[4, 2]], np.int32), missing=())
    assert (out["n_missing"][0], out["sequence"][0]) == (0, -5)
    assert out["missing_place"].tolist() == [[-1, -1]]
    assert out["all_ids"].tolist() == [[4, 2]]
    assert not out["x_out"].any()


def test_nothing_is_posted_after_an_abort(post):
    out = post(np.array([[4, 2]], np.int32), missing=(4,), aborted=1)
    assert out["sequence"][0] == -7


class Join:
    """A call of moe_join with 3 rows and 4 choices, two of every four from the CPU."""

    def __init__(self, rng, call):
        self.call = call
        self.x, self.x_missing = normal(rng, 12, 600), np.zeros((6, 600), np.float32)
        self.answered = normal(rng, 6, 600)
        self.place = rng.permutation(12).reshape(3, 4).astype(np.int32)
        self.missing_place = np.full((3, 4), -1, np.int32)
        self.missing_place[:, [1, 2]] = rng.permutation(6).reshape(3, 2)
        self.weights, self.residual = normal(rng, 3, 4), normal(rng, 3, 600)
        self.has_weights = True
        self.out = np.zeros((3, 600), np.float32)
        names = ("n_missing", "aborted", "answer", "abort", "heartbeat", "ready", "waited")
        self.words = {name: np.zeros(1, np.int64) for name in names}
        self.words["n_missing"][0] = 6
        self.x_link, self.split = np.zeros((12, 0), np.float32), 0

    def expected(self):
        x, place, expected = self.x.copy(), self.place, np.zeros_like(self.out)
        is_missing = self.missing_place >= 0
        x[place[is_missing]] = self.answered[self.missing_place[is_missing]]
        ops.moe_sum(x, place, self.weights if self.has_weights else None, expected, residual=self.residual)
        return expected

    def run(self, step=5, limit=20 * SECOND):
        self.call(
            "mailbox.moe_join", structs.MOE_JOIN, x=self.x, place=self.place, k=4, n=600,
            weights=self.weights if self.has_weights else 0, shared=0, residual=self.residual, out=self.out,
            rows=3, x_missing=self.x_missing, missing_place=self.missing_place, step=step, limit=limit,
            x_link=self.x_link, split=self.split,
            **self.words,
        )  # fmt: skip


@pytest.fixture
def join(rng, call):
    return Join(rng, call)


@pytest.mark.parametrize("has_weights", [False, True])
def test_join_sums_in_the_routers_order(join, assert_same_bits, has_weights):
    join.has_weights = has_weights
    join.x_missing[:] = join.answered
    join.words["answer"][0] = 5
    join.run()
    assert_same_bits(join.out, join.expected())
    assert not join.words["aborted"][0]


def test_the_first_elements_may_come_over_the_link(join, rng, assert_same_bits):
    join.split = 96
    join.x_link = normal(rng, 12, 96)
    is_missing = join.missing_place >= 0
    join.x_link[join.place[is_missing]] = join.answered[join.missing_place[is_missing], :96]
    join.x_missing = np.ascontiguousarray(join.answered[:, 96:])
    join.words["answer"][0] = 5
    join.run()
    assert_same_bits(join.out, join.expected())


def test_a_layer_without_misses_does_not_wait(join, assert_same_bits):
    join.missing_place[:] = -1
    join.words["n_missing"][0] = 0
    join.run(limit=0)
    assert_same_bits(join.out, join.expected())


@pytest.mark.parametrize("has_answer", [True, False])
def test_after_an_abort_nothing_is_written(join, has_answer):
    if has_answer:
        join.words["answer"][0], join.words["aborted"][0] = 5, 1
    else:
        join.words["abort"][0] = 1
    join.run()
    assert join.words["aborted"][0] == 1
    assert not join.out.any()


def test_a_dead_partner_ends_the_step(join):
    join.words["answer"][0] = 4  # of the step before
    join.run(limit=1)
    assert join.words["abort"][0] == join.words["aborted"][0] == 1
    assert not join.out.any()


class TestWithThePartnerRunning:
    """Only where the kernel sees this process's memory while it runs."""

    @pytest.fixture(autouse=True)
    def _emulator_only(self, device):
        if not hasattr(device, "launch"):
            pytest.skip("arrays are copied to this device")

    def test_join_waits_for_the_answer(self, join, assert_same_bits):
        def answer():
            time.sleep(0.05)
            join.x_missing[:] = join.answered
            join.words["answer"][0] = 5

        partner = threading.Thread(target=answer)
        partner.start()
        join.run()
        partner.join()
        assert_same_bits(join.out, join.expected())

    def test_a_slow_partner_with_a_heartbeat_is_waited_for(self, join, assert_same_bits):
        def answer():
            for _ in range(300):
                time.sleep(0.002)
                join.words["heartbeat"][0] += 1
            join.x_missing[:] = join.answered
            join.words["answer"][0] = 5

        partner = threading.Thread(target=answer)
        partner.start()
        join.run(limit=SECOND // 2)
        partner.join()
        assert_same_bits(join.out, join.expected())
