"""The cache's bookkeeping, against small models and by what must hold after any operation."""

import math
import random
from collections import OrderedDict

import pytest

from gguf_moe.errors import OptionError
from gguf_moe.experts.cache import POLICIES, Cache, Upload
from gguf_moe.experts.policies import HALF_LIFE

N_LAYER, N_EXPERT, N_USED = 3, 12, 3


def commit_all(cache, uploads):
    for upload in uploads:
        cache.commit(upload)


def check_invariants(cache):
    """No slot has two owners, none is out of range, and not too much is under way."""
    assert len(cache.in_flight) <= cache.max_in_flight
    for il, n_slots in enumerate(cache.slots_per_layer):
        taken = [slot for slot in cache.table(il) if slot >= 0]
        taken += [upload.slot for upload in cache.in_flight if upload.il == il]
        assert len(set(taken)) == len(taken)
        assert all(0 <= slot < n_slots for slot in taken)


def step_of(rng):
    return [rng.sample(range(N_EXPERT), N_USED) for _ in range(N_LAYER)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_random_operations(policy, seed):
    rng = random.Random(seed)
    cache = Cache(N_LAYER, N_EXPERT, [4, 0, 7], policy, max_in_flight=5)
    if policy == "static":
        cache.warm([[rng.random() for _ in range(N_EXPERT)] for _ in range(N_LAYER)])
    for _ in range(400):
        action = rng.random()
        if action < 0.6:
            ids = step_of(rng)
            before = [set(ids[il]) & {ie for ie in ids[il] if cache.table(il)[ie] >= 0} for il in range(3)]
            cache.used(ids)
            for il, experts in enumerate(before):
                assert all(cache.slot_of(il, ie) is not None for ie in experts), "one in use was evicted"
        elif action < 0.8 and cache.in_flight:
            upload = rng.choice(cache.in_flight)
            cache.commit(upload)
            assert cache.slot_of(upload.il, upload.ie) == upload.slot
        elif action < 0.9 and cache.in_flight:
            upload = rng.choice(cache.in_flight)
            cache.cancel(upload)
            assert cache.slot_of(upload.il, upload.ie) is None
        elif action < 0.95:
            cache.refill()
        elif not cache.in_flight:
            old = [list(cache.table(il)) for il in range(N_LAYER)]
            moves = cache.resize([rng.randint(0, 9), 0, rng.randint(0, 9)])
            for move in moves:
                assert old[move.il][move.ie] == move.source
                assert cache.slot_of(move.il, move.ie) == move.slot
        check_invariants(cache)
    assert cache.counts.hits + cache.counts.misses == cache.counts.steps * N_LAYER * N_USED


def test_lru_is_a_list_in_the_order_of_use():
    rng = random.Random(1)
    cache, model, hits = Cache(1, N_EXPERT, [4], "lru"), OrderedDict(), 0
    for _ in range(2000):
        ie = min(int(rng.expovariate(0.3)), N_EXPERT - 1)
        hits += ie in model
        model[ie] = True
        model.move_to_end(ie)
        if len(model) > 4:
            model.popitem(last=False)
        commit_all(cache, cache.used([[ie]]))
        assert {e for e in range(N_EXPERT) if cache.slot_of(0, e) is not None} == set(model)
    assert cache.counts.hits == hits > 500


def test_fifo_is_a_queue_of_misses():
    rng = random.Random(2)
    cache, model = Cache(1, N_EXPERT, [4], "fifo"), []
    for _ in range(1000):
        ie = rng.randrange(N_EXPERT)
        if ie not in model:
            model = [*model, ie][-4:]
        commit_all(cache, cache.used([[ie]]))
        assert {e for e in range(N_EXPERT) if cache.slot_of(0, e) is not None} == set(model)


def test_a_rare_expert_does_not_displace_hot_ones():
    cache = Cache(1, N_EXPERT, [2], "decayed")
    for _ in range(50):
        commit_all(cache, cache.used([[0]]))
        commit_all(cache, cache.used([[1]]))
    assert cache.used([[7]]) == []
    assert cache.slot_of(0, 0) is not None
    assert cache.slot_of(0, 1) is not None


def test_heat_fades():
    cache = Cache(1, N_EXPERT, [1], "decayed")
    for _ in range(300):
        commit_all(cache, cache.used([[0]]))
    for _ in range(300):
        commit_all(cache, cache.used([[1]]))
    assert cache.slot_of(0, 1) is not None


def test_heat_survives_very_many_steps():
    cache = Cache(1, N_EXPERT, [1], "decayed")
    for _ in range(90_000):
        commit_all(cache, cache.used([[3]]))
    heat = cache.heat()
    assert heat is not None
    assert heat[0][3] == pytest.approx(HALF_LIFE / math.log(2), rel=0.02), "a geometric series"
    assert heat[0][4] == 0


def test_a_slot_is_taken_when_the_upload_starts_and_given_at_commit():
    cache = Cache(1, N_EXPERT, [1], "lru")
    commit_all(cache, cache.used([[0]]))
    (upload,) = cache.used([[5]])
    assert upload == Upload(0, 5, 0)
    assert cache.slot_of(0, 0) is None, "its bytes are being overwritten"
    assert cache.slot_of(0, 5) is None, "its bytes are not there yet"
    cache.commit(upload)
    assert cache.slot_of(0, 5) == 0
    with pytest.raises(ValueError, match="not in flight"):
        cache.commit(upload)


def test_a_prompt_seeds_the_cache_and_flushes_nothing():
    cache = Cache(1, N_EXPERT, [2], "decayed")
    commit_all(cache, cache.used([[0]]))
    cache.prefilled([[0, 0, 40, 30, *[1] * 8]], 50)
    assert cache.slot_of(0, 0) is not None
    while uploads := cache.refill():
        commit_all(cache, uploads)
    assert [ie for ie in range(N_EXPERT) if cache.slot_of(0, ie) is not None] == [2, 3]


def test_skewed_routing_is_kept_better_by_heat_than_by_order_of_arrival():
    """A Zipf-like choice over 64 experts with 16 slots: the more a policy knows, the more it hits."""
    rates = {}
    weights = [1 / (1 + i) for i in range(64)]
    for policy in ("decayed", "lru", "fifo"):
        rng = random.Random(3)
        cache = Cache(1, 64, [16], policy)
        for _ in range(5000):
            commit_all(cache, cache.used([list(dict.fromkeys(rng.choices(range(64), weights, k=4)))]))
        rates[policy] = cache.counts.hit_rate
    best = sum(sorted(weights)[-16:]) / sum(weights)
    assert rates["fifo"] < rates["lru"] < rates["decayed"] < best + 0.02
    assert rates["decayed"] > best - 0.08, "a short memory costs a little where nothing changes"


def test_unknown_policy():
    with pytest.raises(OptionError, match="must be one of decayed, lru"):
        Cache(1, 8, [1], "lfu")
