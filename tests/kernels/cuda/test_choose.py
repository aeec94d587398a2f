"""The choice, the places and the post in one launch: the bits of the three kernels for which it stands."""

import numpy as np
import pytest
from arrays import normal

from gguf_moe_kernels import structs
from gguf_moe_kernels.gating import Gating


class Layer:
    """The arguments of one layer's choice of k experts, and of what follows it."""

    def __init__(self, logits, k, missing, *, bias=None, given=None, n_group=1, aborted=0, **options):
        n_expert = logits.shape[1]
        mine, ids, x = logits.copy(), np.zeros((1, k), np.int32), np.arange(64, dtype=np.uint8)
        is_apart = bias is not None or n_group > 1
        weights_of = np.full(n_expert, 0x1000, np.int64)
        weights_of[list(missing)] = 0
        self.topk = {"logits": mine, "selection": np.zeros_like(mine) if is_apart else mine, "ids": ids}
        self.topk |= {"weights": np.zeros((1, k), np.float32), "bias": 0 if bias is None else bias}
        self.topk |= {"group_scores": np.zeros((1, n_group), np.float32) if n_group > 1 else 0}
        self.topk |= {"given": 0 if given is None else np.array(given, np.int32), "given_stride": 4 * k}
        self.topk |= {"n_expert": n_expert, "k": k, "n_group": n_group, "n_group_used": 1, "rows": 1}
        self.topk |= {"gating": Gating.SOFTMAX, "normalize": 1, "weights_scale": 2.5} | options
        places = {name: np.zeros(n_expert + 1, np.int32) for name in ("used", "first", "token", "counts")}
        places |= {"place": np.zeros((1, k), np.int32), "n_used": np.zeros(1, np.int64), "ids": ids}
        self.places = places | {"n_expert": n_expert, "k": k, "rows": 1}
        post = {name: np.zeros(k + 1, np.int32) for name in ("used", "first", "x_index", "place", "all_ids")}
        post |= {name: np.zeros(1, np.int64) for name in ("n_used", "n_missing", "sequence")}
        post |= {"missing_place": np.zeros((1, k), np.int32), "x_out": np.zeros_like(x)}
        post |= {"ids": ids, "weights": weights_of, "x": x, "x_size": 64, "k": k, "step": 7, "rows": 1}
        self.post = post | {"x_2": 0, "x_2_out": 0, "x_2_size": 0, "aborted": np.array([aborted], np.int64)}

    def run_in_three(self, call):
        call("moe.moe_topk", structs.MOE_TOPK, **self.topk)
        call("moe.expert_rows", structs.EXPERT_ROWS, **self.places)
        call("mailbox.mailbox_post", structs.MAILBOX_POST, **self.post)

    def run_in_one(self, call, kernel):
        call(f"choose.{kernel}", structs.CHOOSE_AND_POST, topk=self.topk, places=self.places, post=self.post)

    def check(self, other, assert_same_bits):
        """All that the device reads, and of what is posted that which the CPU reads."""
        posted = {"all_ids", "sequence", "missing_place", "n_missing"}
        if self.post["n_missing"][0]:
            posted |= set(self.post)
        for part, names in (("topk", self.topk), ("places", self.places), ("post", posted)):
            for name in names:
                mine, theirs = getattr(self, part)[name], getattr(other, part)[name]
                if isinstance(mine, np.ndarray):
                    assert_same_bits(mine, theirs)


@pytest.fixture
def check(call, assert_same_bits):
    def run(kernel, *arguments, **options):
        one, three = Layer(*arguments, **options), Layer(*arguments, **options)
        one.run_in_one(call, kernel)
        three.run_in_three(call)
        one.check(three, assert_same_bits)
        return one

    return run


KERNELS = {"choose_and_post": 600, "choose_and_post_128": 128, "choose_and_post_512": 512}
"""And how many experts they may have to choose from."""


@pytest.mark.parametrize(
    ("kernel", "n_expert", "k"),
    [
        (kernel, n_expert, k)
        for kernel, most in KERNELS.items()
        for n_expert, k in ((8, 2), (24, 4), (128, 8), (100, 32), (500, 10))
        if n_expert <= most
    ],
)
@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
def test_one_launch_gives_what_three_give(rng, check, kernel, gating, n_expert, k):
    logits = normal(rng, 1, n_expert)
    for n_missing in (0, n_expert // 2):
        layer = check(kernel, logits, k, rng.permutation(n_expert)[:n_missing], gating=gating)
        assert layer.post["sequence"][0] == (7 if layer.post["n_missing"][0] else -7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_of_equal_experts_the_first_are_chosen(rng, check, kernel):
    logits = np.full((1, 90), 0.25, np.float32)
    assert check(kernel, logits, 6, range(0, 90, 2)).topk["ids"].tolist() == [[0, 1, 2, 3, 4, 5]]
    logits[0, [5, 37, 69, 70]] = 1.0
    assert check(kernel, logits, 6, ()).topk["ids"].tolist() == [[5, 37, 69, 70, 0, 1]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_bias_and_missing_normalization(rng, check, kernel):
    logits, bias = normal(rng, 1, 70), normal(rng, 70)
    check(kernel, logits, 6, range(40), bias=bias, gating=Gating.SIGMOID)
    check(kernel, logits, 6, range(40), normalize=0)
    check(kernel, np.full_like(logits, -100.0), 6, (), gating=Gating.SIGMOID)


@pytest.mark.parametrize("kernel", KERNELS)
def test_given_ids_may_come_twice(rng, check, kernel):
    layer = check(kernel, normal(rng, 1, 40), 5, (3, 9), given=[9, 3, 9, 30, 30])
    assert layer.places["n_used"][0] == 3
    assert layer.post["n_missing"][0] == 3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("gating", list(Gating), ids=lambda g: g.name)
def test_what_is_not_finite_shows(rng, call, kernel, bad, gating):
    logits = normal(rng, 1, 60)
    logits[0, 17] = bad
    layer = Layer(logits, 4, (), gating=gating)
    layer.run_in_one(call, kernel)
    # The sigmoid of infinity is 1.
    if gating != Gating.SIGMOID or np.isnan(bad):
        assert np.isnan(layer.topk["weights"]).all()
    ids = layer.topk["ids"][0].tolist()
    assert len(set(ids)) == 4
    assert all(0 <= e < 60 for e in ids)


def test_groups(rng, check):
    check("choose_and_post", normal(rng, 1, 32), 4, range(16), n_group=4, gating=Gating.SIGMOID)


@pytest.mark.parametrize("kernel", KERNELS)
def test_after_an_abort_nothing_is_posted(rng, call, kernel):
    layer = Layer(normal(rng, 1, 40), 4, range(20), aborted=1)
    layer.run_in_one(call, kernel)
    assert layer.post["sequence"][0] == 0
    assert not layer.post["all_ids"].any()
