"""The chain of samplers: one token after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from gguf_moe.errors import NumericError, OptionError
from gguf_moe.sample.candidates import Candidates
from gguf_moe.sample.dry import Breakers, dry_penalties
from gguf_moe.sample.sampling import Sampling

Step = Callable[[Candidates, Sequence[int]], None]

_KEEP_THE_TOP = frozenset({"top_n_sigma", "top_k", "top_p", "min_p", "temperature"})
_MOVE_THE_TOP = frozenset({"penalties", "dry", "typ_p", "xtc"})


class Sampler:
    """Chooses tokens one after the other; the same seed and logits give the same tokens.

    breakers: where a repetition ends for DRY, as find_breakers gives them.
    """

    def __init__(self, sampling: Sampling, breakers: Breakers | None = None):
        self.sampling = sampling
        self._breakers = breakers or {}
        self._random = np.random.default_rng(sampling.seed)
        self._mu = 2.0 * sampling.mirostat_tau
        self._steps = [self._step(name) for name in _active(sampling)]
        self._greedy = sampling.temperature == 0.0 and "temperature" in sampling.samplers
        bias = sampling.logit_bias
        self._bias = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float64)

    def choose(self, logits: np.ndarray, recent: Sequence[int] = ()) -> int:
        """The next token. logits: float32 [n_vocab], left as they are; recent: the tokens before it.

        Raises NumericError if the logits are not finite, OptionError if the bias forbids all tokens.
        """
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise NumericError
        if self._greedy and not self._steps and not len(self._bias[0]):
            return likeliest
        candidates = Candidates(logits)
        if len(self._bias[0]):
            candidates.add(*self._bias)
            if candidates.logits.max() == -np.inf:
                raise OptionError("logit_bias forbids all tokens; leave some.")
        if self.sampling.mirostat:
            return self._mirostat(candidates)
        for step in self._steps:
            step(candidates, recent)
        if self._greedy:
            return candidates.most_likely()
        return int(candidates.ids[self._draw(candidates.probabilities())])

    def _draw(self, probabilities: np.ndarray) -> int:
        cumulative = probabilities.cumsum()
        # The sum may end a rounding error below 1, so the last token takes what is left.
        return int(cumulative[:-1].searchsorted(self._random.random(), side="right"))

    def _mirostat(self, candidates: Candidates) -> int:
        """Mirostat 2.0: hold the mean surprise at tau bits by moving the most that is allowed."""
        s = self.sampling
        candidates.temperature(s.temperature)
        probabilities = candidates.surprise_below(self._mu)
        drawn = self._draw(probabilities)
        self._mu -= s.mirostat_eta * (-math.log2(probabilities[drawn]) - s.mirostat_tau)
        return int(candidates.ids[drawn])

    def _step(self, name: str) -> Step:
        s = self.sampling
        steps: dict[str, Step] = {
            "penalties": self._penalties,
            "dry": self._dry,
            "top_n_sigma": lambda candidates, recent: candidates.top_n_sigma(s.top_n_sigma),
            "top_k": lambda candidates, recent: candidates.top_k(s.top_k),
            "typ_p": lambda candidates, recent: candidates.typical_p(s.typical_p),
            "top_p": lambda candidates, recent: candidates.top_p(s.top_p),
            "min_p": lambda candidates, recent: candidates.min_p(s.min_p),
            "xtc": self._xtc,
            "temperature": lambda candidates, recent: candidates.temperature(s.temperature),
        }
        return steps[name]

    def _penalties(self, candidates: Candidates, recent: Sequence[int]) -> None:
        s = self.sampling
        counts = Counter(recent[-s.repeat_last_n :])
        if not counts:
            return
        ids = np.array(list(counts), np.int64)
        candidates.penalize(ids, s.repeat_penalty)
        times = np.array(list(counts.values()), np.float64)
        candidates.add(ids, -(times * s.frequency_penalty + s.presence_penalty))

    def _dry(self, candidates: Candidates, recent: Sequence[int]) -> None:
        s = self.sampling
        ids, penalties = dry_penalties(
            recent[-s.dry_penalty_last_n :],
            self._breakers,
            multiplier=s.dry_multiplier,
            base=s.dry_base,
            allowed_length=s.dry_allowed_length,
        )
        candidates.add(ids, -penalties)

    def _xtc(self, candidates: Candidates, recent: Sequence[int]) -> None:
        s = self.sampling
        if len(candidates.ids) > 1 and self._random.random() < s.xtc_probability:
            candidates.exclude_top(s.xtc_threshold)


def _active(sampling: Sampling) -> list[str]:
    """The steps that change something, in their order."""
    s = sampling
    penalties = s.repeat_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
    on = {
        "penalties": penalties and s.repeat_last_n > 0,
        "dry": s.dry_multiplier > 0.0 and s.dry_penalty_last_n > 0,
        "top_n_sigma": s.top_n_sigma > 0.0,
        "top_k": s.top_k > 0,
        "typ_p": s.typical_p < 1.0,
        "top_p": s.top_p < 1.0,
        "min_p": s.min_p > 0.0,
        "xtc": s.xtc_probability > 0.0 and s.xtc_threshold <= 0.5,
        "temperature": s.temperature != 1.0,
    }
    names = [name for name in s.samplers if on[name]]
    greedy = s.temperature == 0.0 and "temperature" in names
    return [name for i, name in enumerate(names) if not (greedy and _without_effect(names, i))]


def _without_effect(names: list[str], i: int) -> bool:
    """Whether this step before or after temperature 0 cannot change which token is the most likely."""
    return names[i] in _KEEP_THE_TOP and not _MOVE_THE_TOP & set(names[i + 1 :])
