"""From a prompt to text: prefill, the decode loop, and the rules that stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from gguf_moe.constrain import Matcher
from gguf_moe.runtime.context import Context
from gguf_moe.sample import Sampler
from gguf_moe.text.overlap import overlap
from gguf_moe.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of a generation: the token, and the text that became complete with it ("" at times)."""

    text: str
    token: int | None
    logprobs: Mapping[int, float] | None = None
    """Log probabilities of the chosen token and of the likeliest, by token id, if they were asked for."""


@dataclass(slots=True)
class Result:
    """What a generation has produced so far.

    finish_reason is None until it ends, then "stop", "length" or "cancelled".
    """

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
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._error:
            raise self._error
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()

    def end(self, error: Exception) -> None:
        """Stop, if a piece is not being computed; who asks for more of an incomplete text gets the error."""
        with suppress(ValueError):  # it runs at this moment
            self._pieces.close()
            self._error = error if self.result.finish_reason is None else None


class Continuation:
    """A generation between two steps: it takes the logits that follow the last token, and gives pieces.

    Fills in `result`. It is over when result.finish_reason is set. n_logprobs: the log probabilities of each
    chosen token and of so many of the likeliest are wanted, by the model's own logits; None for none.
    matcher: what the text must fit; then only tokens that fit are chosen, whatever the sampler.
    shown: control tokens that are in the text all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampler: Sampler,
        result: Result,
        *,
        max_tokens: int | None,
        stop: Sequence[str],
        n_logprobs: int | None = None,
        matcher: Matcher | None = None,
        shown: Collection[int] = (),
    ):
        self.result = result
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._n_logprobs = n_logprobs
        self._matcher = matcher
        self._text = TextStream(tokenizer, stop, shown)
        self._suppressed = list(tokenizer.suppressed_ids)
        self._start = time.perf_counter()
        self._decode_start = 0.0

    def begin(self, n_reused: int) -> None:
        """The prompt is computed, n_reused of its tokens were in the cache. Without room it is over."""
        self.result.n_reused = n_reused
        self._decode_start = time.perf_counter()
        self.result.prompt_s = self._decode_start - self._start
        if self._max_tokens == 0:
            self.result.finish_reason = "length"

    def take(self, logits: np.ndarray, tokens: Sequence[int], is_full: bool) -> list[Piece]:
        """Choose a token; the pieces that it completes.

        logits: float32 [n_vocab], changed here. tokens: those before it. is_full: the context has no room for
        the token, so that it is the last. Raises ConstraintError if no token fits the matcher.
        """
        result, now = self.result, time.perf_counter
        logits[self._suppressed] = -np.inf
        own_logits = logits
        if self._matcher:
            own_logits = logits if self._n_logprobs is None else logits.copy()
            self._matcher.mask(logits)
        token = self._sampler.choose(logits, tokens)
        result.first_token_s = result.first_token_s or now() - self._start
        pieces = []
        if token in self._tokenizer.eog_ids:
            result.finish_reason = "stop"
        else:
            result.token_ids.append(token)
            if self._matcher:
                self._matcher.accept(token)
            pieces.append(self._piece(self._text.push(token), token, own_logits))
            if self._text.stopped or (self._matcher and self._matcher.is_finished):
                result.finish_reason = "stop"
            elif is_full or len(result.token_ids) == self._max_tokens:
                result.finish_reason = "length"
        if result.finish_reason and not self._text.stopped and (rest := self._text.flush()):
            pieces.append(self._piece(rest, None, own_logits))
        result.decode_s = now() - self._decode_start
        return pieces

    def _piece(self, text: str, token: int | None, logits: np.ndarray) -> Piece:
        self.result.text += text
        if token is None or self._n_logprobs is None:
            return Piece(text, token)
        return Piece(text, token, log_probabilities(logits, token, self._n_logprobs))


def log_probabilities(logits: np.ndarray, token: int, n: int) -> dict[int, float]:
    """Of the token and of the n likeliest, these in descending order: token id -> ln(probability)."""
    total = float(np.logaddexp.reduce(logits, dtype=np.float64))
    likeliest = np.argsort(-logits, kind="stable")[:n]
    return {int(i): float(logits[i]) - total for i in (token, *likeliest)}


def decode_loop(
    context: Context,
    continuation: Continuation,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Piece]:
    """Generate token by token. The prompt must fit into the context, with room for one token."""
    result = continuation.result
    n_reused = context.truncate(common_prefix(context.tokens, result.prompt_token_ids))
    logits = context.extend(result.prompt_token_ids[n_reused:], 1, progress)[0]
    continuation.begin(n_reused)
    while not result.finish_reason:
        yield from continuation.take(logits, context.tokens, len(context.tokens) == context.n_ctx)
        if not result.finish_reason:
            logits = context.extend(result.token_ids[-1:], 1)[0]


class Cancelled(Exception):
    """The caller has had enough, in the middle of a prompt."""


def watching(
    cancel: threading.Event, progress: Callable[[int, int], None] | None
) -> Callable[[int, int], None]:
    """The progress function, which also raises Cancelled once `cancel` is set."""

    def watch(done: int, total: int) -> None:
        if progress:
            progress(done, total)
        if cancel.is_set() and done < total:
            raise Cancelled

    return watch


def until(cancel: threading.Event, pieces: Iterator[Piece], result: Result) -> Iterator[Piece]:
    """The pieces, until `cancel` is set."""
    try:
        for piece in pieces:
            yield piece
            if cancel.is_set():
                raise Cancelled
    except Cancelled:
        result.finish_reason = result.finish_reason or "cancelled"


class TextStream:
    """Tokens in, text out: holds back unfinished UTF-8 and whatever may become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], shown: Collection[int] = ()):
        self._tokens = tokenizer.stream(shown=shown)
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


def common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of the prompt the cache holds; the last one is always computed, for its logits."""
    n = 0
    for a, b in zip(cached, prompt[:-1], strict=False):
        if a != b:
            break
        n += 1
    return n


def _rate(n: int, seconds: float) -> float:
    return max(0, n) / seconds if seconds > 0 else 0.0
