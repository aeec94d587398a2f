"""What a caller may choose about sampling, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from gguf_moe.errors import OptionError

SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""The steps of the chain by llama.cpp's names, in its usual order."""

_RANGES = {
    "temperature": (0.0, math.inf),
    "top_k": (0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-1.0, 1000.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "repeat_last_n": (0, math.inf),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "dry_multiplier": (0.0, 1000.0),
    "dry_base": (1.0, 1000.0),
    "dry_allowed_length": (0, math.inf),
    "dry_penalty_last_n": (0, math.inf),
    "mirostat_tau": (0.0, 1000.0),
    "mirostat_eta": (0.0, 1.0),
    "seed": (0, 2**64 - 1),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. Raises OptionError for a value out of range.

    temperature 0 takes the most likely token. These switch a step off: top_k 0, top_p 1, min_p 0,
    typical_p 1, top_n_sigma 0 or less, xtc_probability 0, repeat_penalty 1, presence_penalty and
    frequency_penalty 0, dry_multiplier 0, repeat_last_n and dry_penalty_last_n 0.

    samplers: the steps that are made, in their order; names of SAMPLERS.
    mirostat 2: Mirostat 2.0 chooses after the temperature, and no other step is made; 0 switches it off.
    logit_bias: token id -> what is added to its logit before all steps; -inf forbids the token.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: tuple[str, ...] = SAMPLERS

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                end = f" to {high:g}" if high < math.inf else " on"
                raise OptionError(f"{name} is {value}, but must be from {low:g}{end}.")
        if self.mirostat not in (0, 2):
            raise OptionError(f"mirostat is {self.mirostat}, but must be 0 (off) or 2 (Mirostat 2.0).")
        if unknown := [name for name in self.samplers if name not in SAMPLERS]:
            raise OptionError(f"{unknown[0]!r} is not a sampler; take some of {';'.join(SAMPLERS)}.")
        for token, bias in self.logit_bias.items():
            if math.isnan(bias) or bias == math.inf:
                raise OptionError(f"the logit_bias of token {token} is {bias}, but must be a number or -inf.")


NAMES = frozenset(f.name for f in fields(Sampling))
"""The names of all choices."""
