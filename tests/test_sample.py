"""The sampler's chain, each step by an example whose answer is known."""

import numpy as np
import pytest

from gguf_moe.errors import NumericError, OptionError
from gguf_moe.sample import Sampler, Sampling

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def chosen(n=400, logits=LOGITS, recent=(), **options):
    sampler = Sampler(Sampling(**(OFF | options), seed=7))
    return [sampler.choose(logits, recent) for _ in range(n)]


def test_greedy_takes_the_most_likely():
    assert set(chosen(temperature=0.0)) == {1}


def test_everything_off_samples_the_distribution():
    counts = np.bincount(chosen(8000), minlength=5) / 8000
    np.testing.assert_allclose(counts, np.exp(LOGITS), atol=0.02)


def test_top_k_keeps_k():
    assert set(chosen(top_k=2)) == {1, 2}


@pytest.mark.parametrize(("p", "kept"), [(0.3, {1}), (0.5, {1, 2}), (0.75, {1, 2, 3}), (0.0, {1})])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    assert set(chosen(top_p=p)) == kept


def test_min_p_is_relative_to_the_largest():
    assert set(chosen(min_p=0.6)) == {1, 2}


def test_temperature_sharpens():
    cold = np.bincount(chosen(4000, temperature=0.3), minlength=5) / 4000
    expected = np.exp(LOGITS / 0.3) / np.exp(LOGITS / 0.3).sum()
    np.testing.assert_allclose(cold, expected, atol=0.03)


def test_repeat_penalty_turns_to_others():
    assert set(chosen(temperature=0.0, recent=[1], repeat_penalty=2.0)) == {2}
    assert set(chosen(temperature=0.0, recent=[1, 0, 0], repeat_penalty=2.0, repeat_last_n=2)) == {1}


def test_the_logits_stay_as_they_are():
    logits = LOGITS.copy()
    chosen(1, logits=logits, recent=[1], repeat_penalty=2.0)
    np.testing.assert_array_equal(logits, LOGITS)


def test_same_seed_same_tokens():
    assert chosen(50) == chosen(50)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(bad):
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(NumericError, match="not a number"):
        Sampler(Sampling()).choose(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repeat_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_named(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Sampling(**options)
