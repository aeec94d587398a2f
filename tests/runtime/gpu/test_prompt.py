"""Long chunks of a prompt: experts pass through the GPU, and the results are those of any other way."""

import numpy as np
import pytest

from gguf_moe.experts.routing import Recorder
from gguf_moe.runtime.gpu import long_prompts
from gguf_moe_kernels.activations import ACTIVATION_FORMAT

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2, 38, 46, 26, 43]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    qtypes = tuple(q for q in ACTIVATION_FORMAT if q.name in ("Q4_K", "Q6_K", "F16"))
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    return tiny_gguf(path, n_layer=2, n_expert=6, n_expert_used=3, seed=5, qtypes=qtypes)


@pytest.fixture
def streams(monkeypatch):
    """Chunks of 8 tokens and more are streamed, up to 12 at once; a piece has room for two experts."""
    monkeypatch.setattr(long_prompts, "CHUNKS", (12,))
    monkeypatch.setattr(long_prompts, "FIRST_THRESHOLD", 8)
    monkeypatch.setattr(long_prompts, "PIECE_SIZE", 1)


def run(context):
    return np.concatenate([context.extend(TOKENS[:11], 2).copy(), context.extend(TOKENS[11:], 1)])


@pytest.mark.parametrize(("slots", "spare"), [(2, 0), (6, 1 << 20)])
def test_a_streamed_prompt_changes_no_bit(hybrid_context, moe_file, streams, assert_same_bits, slots, spare):
    with hybrid_context(moe_file, slots, n_batch=4) as context:
        context.recorder = Recorder(2, range(2), 6, 3)
        expected = run(context)
        routing = context.recorder.routing({})
    with hybrid_context(moe_file, slots, n_batch=4, prompt_bytes=1 << 20, spare=spare) as context:
        context.recorder = Recorder(2, range(2), 6, 3)
        assert_same_bits(run(context), expected)
        np.testing.assert_array_equal(context.recorder.routing({}).ids, routing.ids)
        assert bool(context._runner._long.streamed_bytes) == (slots < 6 or not spare)


def test_long_steps(hybrid_context, moe_file, streams):
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1 << 26) as context:
        runner = context._runner
        assert runner.long_step(30, 1) == 12
        assert runner.long_step(8, 8) == 8
        assert runner.long_step(7, 1) == 0
        assert runner.long_step(30, 30) == 12
        assert runner.long_step(12, 12) == 12
    with hybrid_context(moe_file, 1, n_batch=4) as context:
        assert context._runner.long_step(30, 1) == 0


def test_too_little_memory_means_no_streaming(hybrid_context, moe_file, streams):
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1000) as context:
        assert context._runner.long_step(30, 1) == 0


def test_the_threshold_is_measured():
    threshold = long_prompts.Threshold()
    assert threshold.n_tokens == long_prompts.FIRST_THRESHOLD
    threshold.streamed(0.3)
    threshold.computed(100, 0.2)
    assert threshold.n_tokens == 150
    for _ in range(100):
        threshold.refused()
    assert threshold.n_tokens < 10
    threshold.streamed(0.2)
    assert threshold.n_tokens == 100


def test_a_prompt_leaves_its_heat(hybrid_context, moe_file, streams):
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1 << 26, fill=False) as context:
        context.extend(TOKENS[:11], 1)
        cache = context._runner.slots.cache
        assert len(cache.in_flight) == 8
        assert any(any(layer) for layer in cache.heat())


def test_ctrl_c_in_the_middle_of_a_prompt(hybrid_context, moe_file, streams, monkeypatch):
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1 << 26) as context:
        expected = context.extend(TOKENS[:11], 1).copy()
        context.truncate(0)
        ring = context._runner._long.programs[-1]._ring

        def interrupt(event):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ring, "release", interrupt)
            with pytest.raises(KeyboardInterrupt):
                context.extend(TOKENS[:11], 1)
        assert context.tokens == []
        np.testing.assert_array_equal(context.extend(TOKENS[:11], 1), expected)


def test_a_shorter_chunk_borrows_less(hybrid_context, moe_file, streams, monkeypatch, assert_same_bits):
    parts = TOKENS[:8], (TOKENS * 2)[:24], TOKENS[:1]
    with hybrid_context(moe_file, 4, n_batch=4) as context:
        expected = [context.extend(part, 1).copy() for part in parts]
    monkeypatch.setattr(long_prompts, "CHUNKS", (24, 8))
    monkeypatch.setattr(long_prompts, "SHORTER", 8)
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1 << 26) as context:
        slots = context._runner.slots
        found, held = [], []
        for part in parts:
            found.append(context.extend(part, 1).copy())
            held.append(np.count_nonzero(slots.tables.addresses[:, 0]))
        assert_same_bits(np.concatenate(found), np.concatenate(expected))
        short, long = context._runner._long.programs
        assert (short.n_tokens, long.n_tokens) == (8, 24)
        assert 0 < short.lent_bytes < long.lent_bytes
        assert 8 > held[0] > held[1]
        slots.settle()
        assert np.count_nonzero(slots.tables.addresses[:, 0]) == 8


def test_experts_come_back_after_a_prompt(hybrid_context, moe_file, streams):
    with hybrid_context(moe_file, 4, n_batch=4, prompt_bytes=1 << 26) as context:
        slots = context._runner.slots
        tables = slots.tables.addresses
        context.extend(TOKENS[:11], 1)
        assert (tables[1] == 0).all()
        context.extend([5], 1)
        slots.settle()
        held = [[slots.cache.slot_of(il, ie) is not None for ie in range(6)] for il in range(2)]
        np.testing.assert_array_equal(tables[:, 0] != 0, held)
        assert sum(map(sum, held)) == 8
