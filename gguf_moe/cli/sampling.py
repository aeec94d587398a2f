"""The options that say how tokens are chosen, by llama.cpp's names."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import click

from gguf_moe.errors import OptionError

_SHOWN = {"show_default": True}
_OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "--temp",
        "temperature",
        {"default": 0.8, "type": click.FloatRange(0), "help": "0 is greedy.", **_SHOWN},
    ),
    ("--top-k", "top_k", {"default": 40, "type": click.IntRange(0), "help": "0 switches it off.", **_SHOWN}),
    ("--top-p", "top_p", {"default": 0.95, "type": click.FloatRange(0, 1), "help": "1: off.", **_SHOWN}),
    ("--min-p", "min_p", {"default": 0.05, "type": click.FloatRange(0, 1), "help": "0: off.", **_SHOWN}),
    ("--typical", "typical_p", {"default": 1.0, "type": click.FloatRange(0, 1), "help": "1: off.", **_SHOWN}),
    ("--top-n-sigma", "top_n_sigma", {"default": -1.0, "help": "0 or less: off.", **_SHOWN}),
    ("--xtc-probability", "xtc_probability", {"default": 0.0, "help": "0: off.", **_SHOWN}),
    ("--xtc-threshold", "xtc_threshold", {"default": 0.1, "help": "Above 0.5: off.", **_SHOWN}),
    ("--repeat-penalty", "repeat_penalty", {"default": 1.0, "help": "1: off.", **_SHOWN}),
    ("--repeat-last-n", "repeat_last_n", {"default": 64, "help": "For all three penalties.", **_SHOWN}),
    ("--presence-penalty", "presence_penalty", {"default": 0.0, "help": "0: off.", **_SHOWN}),
    ("--frequency-penalty", "frequency_penalty", {"default": 0.0, "help": "0: off.", **_SHOWN}),
    ("--dry-multiplier", "dry_multiplier", {"default": 0.0, "help": "0: off.", **_SHOWN}),
    ("--dry-base", "dry_base", {"default": 1.75, **_SHOWN}),
    ("--dry-allowed-length", "dry_allowed_length", {"default": 2, **_SHOWN}),
    ("--dry-penalty-last-n", "dry_penalty_last_n", {"default": 64, **_SHOWN}),
    (
        "--dry-sequence-breaker",
        "dry_sequence_breakers",
        {
            "multiple": True,
            "metavar": "TEXT",
            "help": "Ends a repetition; may be repeated; none: no text does.",
        },
    ),
    ("--mirostat", "mirostat", {"default": 0, "help": "2: Mirostat 2.0; 0: off.", **_SHOWN}),
    ("--mirostat-ent", "mirostat_tau", {"default": 5.0, "help": "The surprise aimed at.", **_SHOWN}),
    ("--mirostat-lr", "mirostat_eta", {"default": 0.1, "help": "How fast it is reached.", **_SHOWN}),
    (
        "--logit-bias",
        "logit_bias",
        {"multiple": True, "metavar": "ID(+|-)BIAS", "help": "As 29905-1.5 or 29905-inf; may be repeated."},
    ),
    (
        "--samplers",
        "samplers",
        {"metavar": "NAMES", "help": "The steps in their order, with semicolons between.  [default: all]"},
    ),
    ("--seed", "seed", {"type": click.IntRange(0), "help": "Same seed, same text.  [default: random]"}),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sampling; they arrive as one gguf_moe.Sampling, `sampling`."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        from gguf_moe.sample import Sampling

        values = {name: arguments.pop(name) for _, name, _ in _OPTIONS}
        values["logit_bias"] = dict(_bias(text) for text in values["logit_bias"])
        breakers = values.pop("dry_sequence_breakers")
        if breakers:
            values["dry_sequence_breakers"] = tuple(text for text in breakers if text != "none")
        samplers = values.pop("samplers")
        if samplers is not None:
            values["samplers"] = tuple(name.strip() for name in samplers.split(";") if name.strip())
        return command(sampling=Sampling(**values), **arguments)

    result: Callable[..., Any] = wrapped
    for option, name, settings in reversed(_OPTIONS):
        result = click.option(option, name, **settings)(result)
    return result


def _bias(text: str) -> tuple[int, float]:
    """A token id and its bias, in llama.cpp's way of writing: 29905-1.5."""
    match = re.fullmatch(r"\s*(\d+)\s*([+-])\s*(\d+\.?\d*|\.\d+|inf)\s*", text)
    if not match:
        raise OptionError(f"--logit-bias {text!r} must be a token id, + or -, and a number, as in 29905-1.5.")
    bias = math.inf if match[3] == "inf" else float(match[3])
    return int(match[1]), -bias if match[2] == "-" else bias
