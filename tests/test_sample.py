"""The sampler's chain, each step by an example whose answer is known."""

import numpy as np
import pytest

from gguf_moe.errors import NumericError, OptionError
from gguf_moe.sample import Sampler, Sampling, find_breakers
from gguf_moe.sample.candidates import Candidates
from gguf_moe.sample.dry import dry_penalties

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


@pytest.mark.parametrize("spread", [0.5, 6.0])
@pytest.mark.parametrize("possible", [1.0, 0.0005])
def test_top_k_and_top_p_of_a_large_vocabulary(rng, spread, possible):
    """Equal logits among them; with few possible tokens as under a grammar."""
    logits = np.round(rng.normal(0, spread, 20_000) * 8).astype(np.float32) / 8
    logits[rng.random(20_000) > possible] = -np.inf
    order = np.argsort(-logits, kind="stable")
    finite = order[np.isfinite(logits[order])]
    kept = Candidates(logits)
    kept.top_k(40)
    assert kept.ids.tolist() == finite[:40].tolist()
    kept = Candidates(logits)
    kept.top_p(0.9)
    probabilities = np.exp(logits[finite].astype(np.float64) - logits.max())
    reached = np.cumsum(probabilities) / probabilities.sum()
    n = len(kept.ids)
    assert kept.ids.tolist() == finite[:n].tolist()
    assert reached[n - 1] >= 0.9 - 1e-9
    assert n == 1 or reached[n - 2] < 0.9 + 1e-9


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


def names(text):
    return tuple(text.split(";"))


def test_typical_keeps_what_is_near_the_mean_surprise():
    # Surprises 3.0, 0.92, 1.2, 1.61, 3.0; their mean is 1.35: the third token is nearest, then the fourth.
    assert set(chosen(typical_p=0.25)) == {2}
    assert set(chosen(typical_p=0.45)) == {2, 3}
    assert set(chosen(typical_p=0.6)) == {1, 2, 3}


def test_top_n_sigma_counts_from_the_largest_and_leaves_forbidden_tokens_out_of_the_mean():
    assert set(chosen(top_n_sigma=0.5)) == {1, 2}
    forbidden = LOGITS.copy()
    forbidden[0] = -np.inf
    deviation = float(np.std(LOGITS[1:].astype(np.float64)))
    kept = np.flatnonzero(forbidden >= forbidden.max() - 0.5 * deviation)
    assert set(chosen(logits=forbidden, top_n_sigma=0.5)) == set(kept)


def test_xtc_leaves_out_the_most_likely_but_the_last_above_the_threshold():
    assert set(chosen(xtc_probability=1.0, xtc_threshold=0.15)) == {0, 3, 4}
    assert set(chosen(xtc_probability=1.0, xtc_threshold=0.35)) == {0, 1, 2, 3, 4}
    assert set(chosen(xtc_probability=1.0, xtc_threshold=0.6)) == {0, 1, 2, 3, 4}
    some = np.bincount(chosen(4000, xtc_probability=0.5, xtc_threshold=0.15), minlength=5) / 4000
    assert some[1] == pytest.approx(0.2, abs=0.03)


def test_presence_and_frequency_penalties_are_subtracted():
    assert set(chosen(temperature=0.0, recent=[1], presence_penalty=0.5)) == {2}
    assert set(chosen(temperature=0.0, recent=[1, 1, 2], frequency_penalty=0.3)) == {2}
    assert set(chosen(temperature=0.0, recent=[1, 1, 2], presence_penalty=0.3)) == {1}
    assert set(chosen(temperature=0.0, recent=[2, 2], frequency_penalty=-0.3)) == {2}
    assert set(chosen(temperature=0.0, recent=[1, 0], presence_penalty=0.5, repeat_last_n=1)) == {1}


def test_bias_comes_before_everything():
    assert set(chosen(temperature=0.0, logit_bias={3: 5.0})) == {3}
    assert set(chosen(top_k=2, logit_bias={1: -np.inf})) == {2, 3}
    with pytest.raises(OptionError, match="forbids all"):
        chosen(1, logit_bias=dict.fromkeys(range(5), -np.inf))


def test_the_order_of_the_steps_is_the_one_asked_for():
    options = {"recent": [1], "presence_penalty": 9.0, "top_k": 2}
    assert set(chosen(**options, samplers=names("penalties;top_k"))) == {2, 3}
    assert set(chosen(**options, samplers=names("top_k;penalties"))) <= {1, 2}
    assert set(chosen(**options, samplers=names("top_k"))) == {1, 2}
    # The same where greedy choice could have skipped a step.
    assert set(
        chosen(**options | {"top_k": 1}, temperature=0.0, samplers=names("top_k;penalties;temperature"))
    ) == {1}
    assert set(chosen(**options, temperature=0.0, samplers=names("temperature;penalties"))) == {1}
    assert len(set(chosen(temperature=0.0, samplers=()))) == 5


def test_xtc_and_typical_count_with_temperature_0():
    assert set(chosen(temperature=0.0, xtc_probability=1.0, xtc_threshold=0.15)) == {3}
    assert set(chosen(temperature=0.0, typical_p=0.25)) == {2}


def test_mirostat_allows_twice_the_surprise_aimed_at():
    assert set(chosen(mirostat=2, mirostat_tau=1.5, mirostat_eta=0.0)) == {1, 2, 3}  # 3 bits: from 1/8 on
    assert set(chosen(mirostat=2, mirostat_tau=0.6, mirostat_eta=0.0)) == {1}
    assert set(chosen(mirostat=2, mirostat_tau=9.0, mirostat_eta=0.0, top_k=1)) == {0, 1, 2, 3, 4}


def test_mirostat_moves_towards_the_surprise_aimed_at():
    logits = -np.log(np.arange(1, 2001, dtype=np.float32))  # Zipf's law
    ranks = [np.mean(chosen(1000, logits=logits, mirostat=2, mirostat_tau=tau)) for tau in (1.0, 3.0, 6.0)]
    assert ranks[0] < 1 < ranks[1] < 5 < ranks[2]


def test_dry_works_against_repetitions():
    recent = [1, 2, 3, 4, 0, 1, 2, 3]  # 4 would go on with a repetition of three tokens
    logits = np.zeros(5, np.float32)
    logits[4], logits[0] = 1.0, 0.4
    dry = {"logits": logits, "temperature": 0.0, "dry_multiplier": 0.5}
    assert set(chosen(recent=recent, **dry)) == {0}
    assert set(chosen(recent=recent, **dry, dry_allowed_length=3)) == {4}
    assert set(chosen(recent=recent, **dry, dry_allowed_length=4)) == {4}
    assert set(chosen(recent=recent, **dry, dry_penalty_last_n=3)) == {4}
    assert set(chosen(recent=[4, 4, 4, 1], **dry)) == {4}


@pytest.mark.parametrize("base", [1.0, 1.75])
def test_dry_penalties_are_those_of_a_plain_search(base, rng):
    for _ in range(200):
        recent = rng.integers(0, 4, int(rng.integers(1, 40))).tolist()
        allowed = int(rng.integers(1, 4))
        expected = {}
        for end in range(1, len(recent)):
            n = 0
            while n < end and recent[end - 1 - n] == recent[len(recent) - 1 - n]:
                n += 1
            if n >= allowed:
                token = recent[end]
                expected[token] = max(expected.get(token, 0.0), 0.8 * base ** (n - allowed))
        ids, penalties = dry_penalties(recent, {}, multiplier=0.8, base=base, allowed_length=allowed)
        assert dict(zip(ids.tolist(), penalties.tolist(), strict=True)) == pytest.approx(expected)


class Letters:
    """A tokenizer whose tokens are these texts."""

    texts = ("a", "b", "ab", "\n", "x:", "b\n", "c")
    n_vocab = len(texts)

    def token_bytes(self, token):
        return self.texts[token].encode()

    def encode(self, text, *, bos, special):
        return [self.texts.index(letter) for letter in text]


def test_breakers_are_found_in_tokens_and_across_them():
    assert find_breakers(["\n", ":"], Letters()) == {3: ((),), 4: ((),), 5: ((),)}
    assert find_breakers(["bc"], Letters()) == {1: ((6,),), 2: ((6,),)}
    assert find_breakers([""], Letters()) == {}


def test_a_breaker_ends_a_repetition():
    def penalized(recent, texts):
        breakers = find_breakers(texts, Letters())
        return dry_penalties(recent, breakers, multiplier=1.0, base=2.0, allowed_length=2)[0].tolist()

    assert penalized([0, 1, 6, 2, 0, 1], []) == [6]
    assert penalized([0, 1, 6, 3, 0, 1], ["\n"]) == [6]
    assert penalized([0, 3, 6, 2, 0, 3], ["\n"]) == []  # the breaker is part of the repetition
    assert penalized([0, 1, 3, 6, 0, 1], ["\n"]) == []  # a breaker is never made less likely
    assert penalized([0, 1, 6, 1, 6, 0, 1], ["bc"]) == [6]
    assert penalized([0, 1, 6, 0, 1, 6, 0], ["bc"]) == []


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
        {"typical_p": 2.0},
        {"xtc_probability": -0.5},
        {"presence_penalty": float("nan")},
        {"dry_base": 0.5},
        {"mirostat": 1},
        {"logit_bias": {3: float("nan")}},
    ],
)
def test_values_out_of_range_are_named(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Sampling(**options)


def test_an_unknown_sampler_is_named():
    with pytest.raises(OptionError, match=r"'top_a' is not a sampler; take some of penalties;dry;"):
        Sampling(samplers=("top_k", "top_a"))
