"""A KV cache that grows while it is used, at the expense of experts; and memory that is short."""

import numpy as np
import pytest

import gguf_moe
from gguf_moe.errors import OutOfMemoryError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.gpu import kv, long_prompts, placement
from gguf_moe.runtime.gpu.link import Rates
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


@pytest.mark.parametrize(
    ("kv_kind", "rates"), [(Kind.F16, None), (Kind.Q8_0, None), (Kind.F32, Rates(1.0, 0.3))]
)
def test_growing_changes_no_bit(hybrid_context, moe_file, monkeypatch, assert_same_bits, kv_kind, rates):
    with hybrid_context(moe_file, 2, kv_kind=kv_kind, rates=rates) as context:
        expected = logits(context)
    monkeypatch.setattr(kv, "BLOCK", 4)
    with hybrid_context(moe_file, 2, kv_kind=kv_kind, rates=rates) as context:
        assert context.gpu.caches.n_positions == 4
        assert_same_bits(logits(context), expected)
        assert context.gpu.caches.n_positions == 20
        context.truncate(0)
        assert_same_bits(logits(context), expected)


def test_addresses_move_once_though_one_takes_the_others_place():
    inner = np.dtype([("k", np.int64), ("n", np.int32)])
    struct = np.array((100, (200, 100)), np.dtype([("v", np.int64), ("inner", inner)]))
    kv.move_addresses([struct, struct], {100: 200, 200: 300})
    assert struct.tolist() == (200, (300, 100))


@pytest.fixture
def load(emulated_gpu, moe_file, monkeypatch, kernel_cache):
    """load(...): a model on the emulated device, with a KV cache in blocks of 8 positions.

    `left`: bytes of the device's memory that experts and KV cache may have.
    """
    monkeypatch.setattr(kv, "BLOCK", 8)
    monkeypatch.setattr(placement, "open_device", lambda name, *arguments: emulated_gpu)
    options = {"n_ctx": 64, "threads": 1, "cache_dir": kernel_cache, "device": "cuda:0", "n_batch": 4}

    def make(left=None, **more):
        with monkeypatch.context() as patch:
            if left is not None:
                patch.setattr(placement.GpuBudget, "left", property(lambda self: left))
            return gguf_moe.load(moe_file, **options | more)

    return make


@pytest.fixture
def sizes(load):
    """Bytes of a slot of each layer, and the KV cache's bytes by how many positions there is room for."""
    with load() as model:
        return model.gpu.slots.memory.sizes, {n: model.gpu.caches.nbytes(n) for n in range(8, 65, 8)}


def held(cache):
    return [sum(cache.slot_of(il, ie) is not None for ie in range(4)) for il in range(2)]


def test_the_cache_grows_into_the_first_layers_slots(load, sizes, emulated_gpu):
    slot_sizes, kv_bytes = sizes
    with load(left=kv_bytes[8] + 3 * sum(slot_sizes)) as model:
        slots, caches = model.gpu.slots, model.gpu.caches
        assert slots.cache.slots_per_layer == (3, 3)
        before = model.logits(TOKENS[:8])
        assert caches.n_positions == 8
        n_allocated, end = emulated_gpu.n_allocated, slots.memory.front + slots.memory.most_front_bytes
        longer = model.logits(TOKENS)
        assert caches.n_positions == 24
        lost = -(-(kv_bytes[24] - kv_bytes[8]) // slot_sizes[0])
        assert slots.cache.slots_per_layer == (3 - lost, 3)
        assert held(slots.cache) == [3 - lost, 3]
        assert end - slots.memory.nbytes == slots.memory.front + kv_bytes[24]
        assert emulated_gpu.n_allocated == n_allocated
        np.testing.assert_array_equal(model.logits(TOKENS[:8]), before)
        np.testing.assert_array_equal(model.logits(TOKENS), longer)
    with load() as model:
        np.testing.assert_array_equal(model.logits(TOKENS), longer)


def test_the_cache_may_take_the_last_slot(load, sizes):
    kv_bytes = sizes[1]
    with load(kv_type="f32", left=2 * kv_bytes[64]) as model:
        assert sum(model.gpu.slots.cache.slots_per_layer) == 1
        found = model.logits(TOKENS * 3)
        assert model.gpu.slots.cache.slots_per_layer == (0, 0)
    with load(kv_type="f32") as model:
        np.testing.assert_array_equal(found, model.logits(TOKENS * 3))


def test_nobody_makes_room_where_the_whole_context_fits(load, sizes):
    slot_sizes, kv_bytes = sizes
    with load(left=kv_bytes[64] + 4 * sum(slot_sizes)) as model:
        model.logits(TOKENS * 3)
        assert model.gpu.slots.cache.slots_per_layer == (4, 4)


@pytest.mark.parametrize("slots", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_long_prompts_go_on_in_memory_that_moved(load, sizes, monkeypatch, assert_same_bits, slots):
    monkeypatch.setattr(long_prompts.Threshold, "n_tokens", 8)
    monkeypatch.setattr(long_prompts, "PIECE_SIZE", 1)
    slot_sizes, kv_bytes = sizes
    results = []
    for chunks in ((), (12,)):
        monkeypatch.setattr(long_prompts, "CHUNKS", chunks)
        with load(left=kv_bytes[8] + slots * sum(slot_sizes)) as model:
            context = model._context
            results.append([context.extend(part, 1).copy() for part in (TOKENS[:7], TOKENS, TOKENS[:13])])
            assert context.gpu.caches.n_positions == 40
            assert context.gpu.long_step(20, 1) == (12 if chunks else 0)
    assert_same_bits(np.concatenate(results[1]), np.concatenate(results[0]))


def test_a_context_that_will_never_fit_is_refused_at_load(load):
    with pytest.raises(OutOfMemoryError, match=r"its context, need .* use a smaller context"):
        load(n_ctx=1 << 20)


def test_a_cache_that_cannot_grow_loses_nothing(hybrid_context, moe_file, monkeypatch, assert_same_bits):
    monkeypatch.setattr(kv, "BLOCK", 4)
    with hybrid_context(moe_file, 2) as context:
        expected = context.extend(TOKENS[:3], 1).copy()
        context.truncate(0)
        monkeypatch.setattr(type(context.gpu.slots.memory), "most_front_bytes", 100)
        with pytest.raises(OutOfMemoryError, match=r"for 20 positions needs .* but 0.00 GB may be used"):
            context.extend(TOKENS, 1)
        assert_same_bits(context.extend(TOKENS[:3], 1), expected)


def test_fewer_experts_where_the_memory_is_in_pieces(load, emulated_gpu):
    with load() as model:
        expected, largest = model.logits(TOKENS[:3]), model.gpu.slots.memory.most_front_bytes
    emulated_gpu.refuses = lambda number, nbytes: nbytes >= largest
    with load() as model:
        assert 0 < model.gpu.slots.memory.most_front_bytes < largest
        np.testing.assert_array_equal(model.logits(TOKENS[:3]), expected)


@pytest.mark.parametrize("number", [2, 7, 20])
def test_out_of_memory_while_loading(load, emulated_gpu, number):
    emulated_gpu.refuses = lambda n, nbytes: n == number
    with pytest.raises(OutOfMemoryError, match=r"cannot give .* use less"):
        load()
