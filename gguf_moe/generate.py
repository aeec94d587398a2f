"""From a prompt to text: prefill, the decode loop, and the rules that stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gguf_moe.runtime.context import Context
from gguf_moe.sample import Sampler
from gguf_moe.text.reasoning import overlap
from gguf_moe.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of a generation: the token, and the text that became complete with it ("" at times)."""

    text: str
    token: int | None


@dataclass(slots=True)
class Result:
    """What a generation has produced so far. finish_reason is None until it ends, then "stop" or "length"."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    n_reused: int = 0
    """Prompt tokens that the context still held."""
    prompt_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed of the prefill, without the tokens that were reused."""
        return _rate(len(self.prompt_token_ids) - self.n_reused, self.prompt_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of the tokens after the first, which the prefill gave."""
        return _rate(len(self.token_ids) - 1, self.decode_s)


class Generation:
    """An iterator over pieces of text. Closing it early, or dropping it, frees the model for the next one."""

    def __init__(self, pieces: Generator[Piece], result: Result):
        self._pieces = pieces
        self.result = result
        """What has been produced so far; complete when the iteration is over."""

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()


def decode_loop(
    context: Context,
    tokenizer: Tokenizer,
    sampler: Sampler,
    result: Result,
    *,
    max_tokens: int | None,
    stop: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """Fill in `result` token by token. The prompt must fit into the context, with room for one token."""
    start = time.perf_counter()
    prompt = result.prompt_token_ids
    result.n_reused = context.truncate(_common_prefix(context.tokens, prompt))
    logits = context.extend(prompt[result.n_reused :], 1, progress)[0]
    result.prompt_s = time.perf_counter() - start

    text = TextStream(tokenizer, stop)
    suppressed = list(tokenizer.suppressed_ids)
    decode_start = time.perf_counter()
    while max_tokens is None or len(result.token_ids) < max_tokens:
        logits[suppressed] = -np.inf
        token = sampler.choose(logits, context.tokens)
        result.first_token_s = result.first_token_s or time.perf_counter() - start
        if token in tokenizer.eog_ids:
            result.finish_reason = "stop"
            break
        result.token_ids.append(token)
        new = text.push(token)
        result.text += new
        result.decode_s = time.perf_counter() - decode_start
        yield Piece(new, token)
        if text.stopped:
            result.finish_reason = "stop"
            return
        if len(context.tokens) == context.n_ctx:
            break
        if max_tokens is None or len(result.token_ids) < max_tokens:
            logits = context.extend([token], 1)[0]
    result.finish_reason = result.finish_reason or "length"
    result.decode_s = time.perf_counter() - decode_start
    if rest := text.flush():
        result.text += rest
        yield Piece(rest, None)


class TextStream:
    """Tokens in, text out: holds back unfinished UTF-8 and whatever may become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self._tokens = tokenizer.stream()
        self._stop = [s for s in stop if s]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now. After a stop string `stopped` is set and its text is not given."""
        return self._release(self._tokens.push(token))

    def flush(self) -> str:
        """What was held back, at the end of the generation."""
        text = self._release(self._tokens.flush())
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        hold = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of the prompt the cache holds; the last one is always computed, for its logits."""
    n = 0
    for a, b in zip(cached, prompt[:-1], strict=False):
        if a != b:
            break
        n += 1
    return n


def _rate(n: int, seconds: float) -> float:
    return max(0, n) / seconds if seconds > 0 else 0.0
