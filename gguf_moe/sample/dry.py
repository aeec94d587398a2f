"""DRY ("don't repeat yourself"): a token that would go on with a repetition loses more, the longer it is.

Defined by llama.cpp (llama_sampler_dry in src/llama-sampler.cpp), after an idea of text-generation-webui.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

Breakers = Mapping[int, tuple[tuple[int, ...], ...]]
"""Where a repetition ends: the first token of a breaker -> what may follow it; () where it is all."""

MAX_BREAKER_BYTES = 40
MAX_TAIL = 20
_LOG_OF_LARGEST_FLOAT = 88.7228391


class Tokens(Protocol):
    """What is needed of a tokenizer."""

    n_vocab: int

    def token_bytes(self, token_id: int) -> bytes: ...

    def encode(self, text: str, *, bos: bool | None = None, special: bool = True) -> list[int]: ...


def find_breakers(texts: Sequence[str], tokenizer: Tokens) -> Breakers:
    """The tokens in which the texts lie, and those in which one begins, with the tokens of the rest."""
    found: dict[int, set[tuple[int, ...]]] = {}
    wanted = [text.encode(errors="surrogatepass")[:MAX_BREAKER_BYTES] for text in texts if text]
    for token in range(tokenizer.n_vocab):
        word = tokenizer.token_bytes(token)
        for breaker in wanted:
            if breaker in word:
                found.setdefault(token, set()).add(())
            elif len(breaker) > 1 and word:
                for n in _overlaps(word, breaker):
                    rest = breaker[n:].decode(errors="ignore")
                    tail = tuple(tokenizer.encode(rest, bos=False, special=False))[:MAX_TAIL]
                    found.setdefault(token, set()).add(tail)
    return {token: tuple(sorted(tails)) for token, tails in found.items()}


def dry_penalties(
    recent: Sequence[int], breakers: Breakers, *, multiplier: float, base: float, allowed_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that would go on with a repetition, int64 [n], and what their logits lose, float64 [n].

    recent: the tokens before the next one, as far back as repetitions are looked for.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0)
    if len(recent) <= allowed_length:
        return nothing
    longest = _tokens_since_breaker(recent, breakers)
    if longest < allowed_length:
        return nothing
    max_exponent = int(_LOG_OF_LARGEST_FLOAT / math.log(base)) if base > 1.000001 else 0
    tokens = np.asarray(recent, np.int64)
    lengths = _repeated(tokens, min(longest, allowed_length + max_exponent))[:-1]
    following = tokens[1:][lengths >= allowed_length]
    ids, index = np.unique(following, return_inverse=True)
    longest_of = np.zeros(len(ids), np.int64)
    np.maximum.at(longest_of, index, lengths[lengths >= allowed_length])
    whole = np.array([() in breakers.get(int(token), ()) for token in ids], bool)
    penalties = multiplier * base ** (longest_of - allowed_length).astype(np.float64)
    return ids[~whole], penalties[~whole]


def _repeated(tokens: np.ndarray, limit: int) -> np.ndarray:
    """For each place, how many tokens up to it are the last tokens of all; at most `limit`. int64 [n]."""
    lengths = np.zeros(len(tokens), np.int64)
    last = len(tokens) - 1
    places = np.flatnonzero(tokens[:-1] == tokens[-1])
    for length in range(1, limit + 1):
        if not places.size:
            break
        lengths[places] = length
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[last - length]]
    return lengths


def _tokens_since_breaker(recent: Sequence[int], breakers: Breakers) -> int:
    """How many tokens come after the last breaker, or all."""
    n = len(recent)
    for i, token in enumerate(reversed(recent)):
        tails = breakers.get(token, ())
        matching = [len(tail) for tail in tails if tuple(recent[n - i : n - i + len(tail)]) == tail]
        if matching:
            return i - max(matching)
    return n


def _overlaps(word: bytes, breaker: bytes) -> list[int]:
    """The lengths of the beginnings of the breaker that are ends of the word."""
    return [n for n in range(1, min(len(word), len(breaker) - 1) + 1) if word.endswith(breaker[:n])]
