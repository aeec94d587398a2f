"""The policies on synthetic traces against the hit rates that were published for real ones."""

from __future__ import annotations

import pytest
from synthetic_routing import SHAPES, trace

from gguf_moe.experts.cache import POLICIES, Cache


def replay(ids, n_expert, n_slots, policy):
    """Percent of hits in the last nine tenths of a trace, and uploads per token, if these take no time."""
    cache = Cache(1, n_expert, [n_slots], policy, max_in_flight=n_expert)
    warm_up, hits, misses = len(ids) // 10, 0, 0
    for i, chosen in enumerate(ids.tolist()):
        if i == warm_up:
            hits, misses = cache.counts.hits, cache.counts.misses
        for upload in cache.used([chosen]):
            cache.commit(upload)
    hits, misses = cache.counts.hits - hits, cache.counts.misses - misses
    return 100 * hits / (hits + misses), cache.counts.uploads / len(ids)


# Slots, and percent for LRU and decayed frequency: github.com/harshithkantamneni/moe-speed-of-light,
# policy_study_outcome.md. The traces only resemble the texts that were measured there.
PUBLISHED = {
    "gpt-oss-20b": ([4, 8, 12], [46, 68, 81], [46, 69, 83]),
    "qwen3-30b-a3b": ([16, 32, 48], [61, 81, 91], [63, 82, 91]),
    "mixtral-8x7b": ([2, 3, 4], [37, 50, 62], [36, 50, 63]),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_hit_rates_are_near_those_published(model):
    shape = SHAPES[model]
    ids = trace(shape, 1, 6000, seed=7)[:, 0]
    for n_slots, lru, decayed in zip(*PUBLISHED[model], strict=True):
        found = {policy: replay(ids, shape.n_expert, n_slots, policy) for policy in POLICIES}
        assert found["lru"][0] == pytest.approx(lru, abs=6)
        assert found["decayed"][0] > decayed - 6
        assert found["decayed"][0] > found["lru"][0] - 2
        assert found["s3-fifo"][0] > found["lru"][0] - 4
        assert found["fifo"][0] < found["lru"][0] + 1
        assert found["decayed"][1] < 0.7 * found["lru"][1], "admission saves uploads"


def test_uniform_routing_hits_by_chance_alone():
    shape = SHAPES["qwen3-30b-a3b"]
    ids = trace(shape, 1, 3000, seed=3, uniform=True)[:, 0]
    for policy in ("decayed", "lru", "s3-fifo", "fifo"):
        assert replay(ids, 128, 32, policy)[0] == pytest.approx(25, abs=2)


def test_a_trace_chooses_each_expert_once_and_is_the_same_every_time():
    shape = SHAPES["mixtral-8x7b"]
    ids = trace(shape, 3, 300, seed=1)
    assert ids.shape == (300, 3, 2)
    assert (ids[..., 0] != ids[..., 1]).all()
    assert (ids == trace(shape, 3, 300, seed=1)).all()
