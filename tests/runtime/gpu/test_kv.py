"""A KV cache that grows while it is used, at the expense of experts; and memory that is short."""

import numpy as np
import pytest

import gguf_moe
from gguf_moe.errors import OutOfMemoryError
from gguf_moe.runtime.gpu import kv, long_prompts, placement
from gguf_moe_kernels.quants import GGMLType

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "moe.gguf", qtypes=(GGMLType.Q4_K,))


def logits(context):
    parts = [context.extend(TOKENS[:3], 3)]
    parts += [context.extend([token], 1).copy() for token in TOKENS[3:8]]
    parts += [context.extend(TOKENS[8:15], 7)]
    parts += [context.extend([token], 1).copy() for token in TOKENS[15:]]
    return np.concatenate(parts)


def test_growing_changes_no_bit(hybrid_context, moe_file, monkeypatch, assert_same_bits):
    with hybrid_context(moe_file, 2) as context:
        expected = logits(context)
    monkeypatch.setattr(kv, "BLOCK", 4)
    with hybrid_context(moe_file, 2) as context:
        assert context.gpu.caches.n_positions == 4
        assert_same_bits(logits(context), expected)
        assert context.gpu.caches.n_positions == 20
        context.truncate(0)
        assert_same_bits(logits(context), expected)


@pytest.fixture
def load(emulated_gpu, moe_file, monkeypatch, kernel_cache):
    """load(...): a model on the emulated device, with a KV cache in blocks of 8 positions."""
    monkeypatch.setattr(kv, "BLOCK", 8)
    monkeypatch.setattr(placement, "open_device", lambda name, *arguments: emulated_gpu)
    options = {"n_ctx": 64, "threads": 1, "cache_dir": kernel_cache, "device": "cuda:0", "n_batch": 4}
    return lambda **more: gguf_moe.load(moe_file, **options | more)


def has_only(monkeypatch, nbytes):
    monkeypatch.setattr(placement.GpuBudget, "left", property(lambda self: nbytes))


def held(cache):
    return [sum(cache.slot_of(il, ie) is not None for ie in range(4)) for il in range(2)]


def test_experts_make_room_and_come_back(load, monkeypatch):
    with load() as model:
        cache = model.gpu.slots.cache
        has_only(monkeypatch, 3 * sum(model.gpu.slots.sizes))
        before = model.logits(TOKENS[:8])
        assert model.gpu.caches.n_positions == 8
        model.logits(TOKENS)
        assert model.gpu.caches.n_positions == 24
        assert cache.slots_per_layer == (3, 3)
        assert held(cache) == [3, 3]
        np.testing.assert_array_equal(model.logits(TOKENS[:8]), before)


@pytest.mark.parametrize("slots", [3, 40])
def test_long_prompts_go_on_in_memory_that_moved(load, monkeypatch, assert_same_bits, slots):
    monkeypatch.setattr(long_prompts.Threshold, "n_tokens", 8)
    monkeypatch.setattr(long_prompts, "PIECE_SIZE", 1)
    results = []
    for chunks in ((), (12,)):
        monkeypatch.setattr(long_prompts, "CHUNKS", chunks)
        with load() as model, monkeypatch.context() as patch:
            has_only(patch, slots * sum(model.gpu.slots.sizes))
            context = model._context
            results.append([context.extend(part, 1).copy() for part in (TOKENS[:7], TOKENS, TOKENS[:13])])
            assert context.gpu.caches.n_positions == 40
            assert context.gpu.long_step(20, 1) == (12 if chunks else 0)
    assert_same_bits(np.concatenate(results[1]), np.concatenate(results[0]))


def test_a_context_that_does_not_fit_is_said_with_numbers(load, monkeypatch):
    with load() as model:
        expected = model.logits(TOKENS[:8])
        has_only(monkeypatch, -(10**9))
        with pytest.raises(OutOfMemoryError, match=r"for 20 positions needs .* but 0.00 GB may be used"):
            model.logits(TOKENS)
        assert model.gpu.slots.cache.slots_per_layer == (4, 4)
        np.testing.assert_array_equal(model.logits(TOKENS[:8]), expected)


def test_a_context_that_will_never_fit_is_refused_at_load(load):
    with pytest.raises(OutOfMemoryError, match=r"its context, need .* use a smaller context"):
        load(n_ctx=1 << 20)


def test_a_cache_that_cannot_grow_loses_nothing(load, emulated_gpu):
    with load() as model:
        expected = model.logits(TOKENS[:8])
        second = emulated_gpu.n_allocated + 2
        emulated_gpu.refuses = lambda number, nbytes: number == second
        with pytest.raises(OutOfMemoryError, match="cannot give"):
            model.logits(TOKENS)
        assert held(model.gpu.slots.cache) == [4, 4]
        np.testing.assert_array_equal(model.logits(TOKENS[:8]), expected)
        assert np.isfinite(model.logits(TOKENS)).all()


def test_fewer_experts_where_the_memory_is_in_pieces(load, emulated_gpu):
    with load() as model:
        expected, largest = model.logits(TOKENS[:3]), model.gpu.slots.nbytes
    emulated_gpu.refuses = lambda number, nbytes: nbytes >= largest
    with load() as model:
        assert 0 < model.gpu.slots.nbytes < largest
        np.testing.assert_array_equal(model.logits(TOKENS[:3]), expected)


@pytest.mark.parametrize("number", [2, 7, 20])
def test_out_of_memory_while_loading(load, emulated_gpu, number):
    emulated_gpu.refuses = lambda n, nbytes: n == number
    with pytest.raises(OutOfMemoryError, match=r"cannot give .* use less"):
        load()
