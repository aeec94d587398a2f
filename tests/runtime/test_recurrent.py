"""A context with recurrent layers: their states go on with the tokens, and go back to kept ones only."""

import numpy as np
import pytest

import gguf_moe
from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.graph.task import Kind
from gguf_moe.runtime import placement
from gguf_moe.runtime.sequence import PROMPT_END, Part

TOKENS = [3, 141, 59, 26, 5, 35, 89, 79, 32, 38]


@pytest.fixture
def context(crew_context, recurrent_file):
    with crew_context(recurrent_file, 2) as context:
        yield context


def test_going_back_means_beginning_again(context):
    expected = context.extend(TOKENS, 3).copy()
    assert context.truncate(len(TOKENS)) == len(TOKENS)
    assert context.truncate(len(TOKENS) - 1) == 0
    assert context.tokens == []
    np.testing.assert_array_equal(context.extend(TOKENS, 3), expected)


def test_after_an_interrupted_step_the_context_is_empty(context, monkeypatch):
    expected = context.extend(TOKENS[:4], 1).copy()
    run = context._runner.run

    def interrupt(step):
        run(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(context._runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        context.extend(TOKENS[4:6], 1)
    monkeypatch.undo()
    assert context.tokens == []
    np.testing.assert_array_equal(context.extend(TOKENS[:4], 1), expected)


def test_a_prompt_that_goes_on_reuses_the_state_and_another_one_does_not(recurrent_file, kernel_cache):
    with gguf_moe.load(recurrent_file, threads=2, n_ctx=64, cache_dir=kernel_cache) as model:

        def generate(prompt):
            generation = model.generate(prompt, max_tokens=4, temperature=0)
            list(generation)
            return generation.result

        first = generate(TOKENS)
        longer = [*TOKENS, *first.token_ids, 7]
        held = len(TOKENS) + len(first.token_ids) - 1  # the last token was not computed
        after = generate(longer)
        again = generate(longer)
        assert (first.n_reused, after.n_reused, again.n_reused) == (0, held, 0)
        assert after.token_ids == again.token_ids
        assert generate(TOKENS).token_ids == first.token_ids


def test_a_chat_goes_back_to_shortly_before_the_end_of_a_prompt(recurrent_file, kernel_cache):
    other = [*LONG[:-4], 9, 8, 7]
    results = []
    with gguf_moe.load(recurrent_file, threads=2, n_ctx=140, cache_dir=kernel_cache) as model:
        for prompt in (LONG, other, TOKENS, other):
            generation = model.generate(prompt, max_tokens=4, temperature=0)
            list(generation)
            results.append(generation.result)
    assert [result.n_reused for result in results] == [0, len(LONG) - PROMPT_END, 0, 0]
    assert results[1].token_ids == results[3].token_ids


LONG = [(7 * i * i + 3 * i) % 280 for i in range(100)]


@pytest.mark.parametrize("n_batch", [8, 128])
def test_a_long_prompt_is_gone_back_to(crew_context, recurrent_file, n_batch, assert_same_bits):
    kept = len(LONG) - PROMPT_END
    with crew_context(recurrent_file, 2, n_batch=n_batch, n_ctx=140) as context:
        context.extend(LONG, 1)
        context.extend(TOKENS, 1)
        assert context.truncate(len(LONG) - 5) == kept
        assert context.tokens == LONG[:kept]
        logits = context.extend(TOKENS, 3).copy()
        assert context.truncate(kept) == kept  # the copy is still there
        assert_same_bits(context.extend(TOKENS, 3), logits)
        assert context.truncate(kept - 1) == 0
        context.extend(LONG[:kept], 1)
        assert_same_bits(context.extend(TOKENS, 3), logits)


def test_an_interrupted_step_goes_back_to_kept_states(crew_context, recurrent_file, monkeypatch):
    with crew_context(recurrent_file, 2, n_ctx=140) as context:
        context.extend(LONG, 1)
        expected = context.extend(TOKENS, 1).copy()

        def interrupt(step):
            raise KeyboardInterrupt

        monkeypatch.setattr(context._runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            context.extend(TOKENS, 1)
        monkeypatch.undo()
        kept = len(LONG) - PROMPT_END
        assert context.tokens == LONG[:kept]
        np.testing.assert_array_equal(context.extend([*LONG[kept:], *TOKENS], 1), expected)


def test_memory_counts_states_and_the_caches_of_other_layers(context, recurrent_file):
    with open_checkpoint(recurrent_file) as checkpoint:
        hparams = read_hparams(checkpoint.metadata, find_arch(checkpoint.metadata))
    buffers = context.graph.buffers().values()
    states = sum(4 * b.rows * b.cols for b in buffers if "_states_l" in b.name)
    caches = sum(2 * b.rows * b.cols for b in buffers if b.name.startswith("cache_"))
    assert placement.state_bytes(hparams) == states
    assert placement.cache_bytes(hparams, context.n_ctx, Kind.F16) == caches


def test_a_state_is_copied_with_all_its_tokens_or_not_at_all(crew_context, recurrent_file, assert_same_bits):
    with crew_context(recurrent_file, 2, n_seq_max=3) as context:
        a, b, c = context.sequences
        expected = [context.step([Part(a, TOKENS[:6], 1)])[0].copy()]
        assert context.state.copy_prefix(a, b, 5) == 0
        assert context.state.copy_prefix(a, c, 6) == 6
        assert (b.tokens, c.tokens) == ([], TOKENS[:6])
        expected.append(context.step([Part(a, TOKENS[6:], 1)])[0].copy())
        logits = context.step([Part(c, TOKENS[6:], 1)])[0].copy()
        assert_same_bits(logits, expected[1])
        assert_same_bits(context.step([Part(b, TOKENS[:6], 1)])[0], expected[0])


def test_kept_states_are_copied_too(crew_context, recurrent_file, assert_same_bits):
    kept = len(LONG) - PROMPT_END
    with crew_context(recurrent_file, 2, n_batch=128, n_ctx=140, n_seq_max=2) as context:
        a, b = context.sequences
        context.step([Part(a, LONG[:kept], 0, keeps_states=True)])
        context.step([Part(a, LONG[kept:], 0)])
        assert context.state.copy_prefix(a, b, kept + 3) == kept
        assert b.tokens == LONG[:kept]
        of_b = context.step([Part(b, TOKENS, 3)])[0].copy()
        assert a.truncate(kept + 1) == kept
        assert_same_bits(context.step([Part(a, TOKENS, 3)])[0], of_b)
