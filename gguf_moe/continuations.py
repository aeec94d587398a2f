"""What a caller asks of a model, checked, and made into a continuation that can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf_moe.constrain import NO_PREFACE, Matchers, find_grammar
from gguf_moe.errors import ContextFullError, OptionError
from gguf_moe.generate import Continuation, Result
from gguf_moe.prompts import ChatPrompt
from gguf_moe.sample import Breakers, Sampler, Sampling, find_breakers
from gguf_moe.sample.sampling import NAMES as SAMPLING_NAMES
from gguf_moe.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | ChatPrompt
"""A text, token ids taken as they are, or what Model.chat_prompt makes of messages."""


class Continuations:
    """Makes continuations for one model, with its tokenizer, n_vocab and n_ctx."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, n_ctx: int):
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._n_ctx = n_ctx
        self._matchers = Matchers(tokenizer)
        self._breakers: dict[tuple[str, ...], Breakers] = {}

    def make(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        n_logprobs: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        **sampling_options: Any,
    ) -> Continuation:
        """Options as for Model.generate; n_logprobs as for Continuation.

        One of these says what the text must be: OpenAI's response_format; a JSON schema, or its text; a
        grammar in llguidance's Lark or in GBNF; a regular expression. Raises OptionError if they are wrong.
        """
        if sampling_options:
            sampling = _changed(sampling or Sampling(), sampling_options)
        if max_tokens is not None and max_tokens < 0:
            raise OptionError(f"max_tokens is {max_tokens}, but must be 0 or more.")
        chat = prompt if isinstance(prompt, ChatPrompt) else None
        wanted = find_grammar(
            response_format=response_format, json_schema=json_schema, grammar=grammar, regex=regex
        )
        if chat and chat.call:
            if wanted:
                raise OptionError(
                    f"{wanted.kind.value} and a tool_choice that demands a call exclude each other."
                )
            wanted = chat.call
        return Continuation(
            self._tokenizer,
            self._sampler(sampling or Sampling()),
            Result(prompt_token_ids=self._ids(prompt)),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            n_logprobs=n_logprobs,
            matcher=self._matchers.matcher(wanted, chat.preface if chat else NO_PREFACE) if wanted else None,
            shown=chat.shown if chat else (),
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.checked_ids(self._tokenizer.encode(prompt))
        return self.checked_ids(prompt.ids if isinstance(prompt, ChatPrompt) else prompt)

    def checked_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids as a list: at least one, all in the vocabulary, and no more than the context holds."""
        ids = [int(i) for i in ids]
        if not ids:
            raise OptionError("the prompt is empty and the model has no BOS token; give it some text.")
        if wrong := [i for i in ids if not 0 <= i < self._n_vocab]:
            raise OptionError(f"{wrong[0]} is not a token id of this model (0 to {self._n_vocab - 1}).")
        if len(ids) > self._n_ctx:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens, but the context holds {self._n_ctx}; "
                "use a larger context (--ctx) or a shorter prompt."
            )
        return ids

    def _sampler(self, sampling: Sampling) -> Sampler:
        """Raises OptionError for a token id that is not in the vocabulary."""
        if wrong := [i for i in sampling.logit_bias if not 0 <= i < self._n_vocab]:
            raise OptionError(
                f"logit_bias has {wrong[0]}, which is not a token id of this model "
                f"(0 to {self._n_vocab - 1})."
            )
        texts = sampling.dry_sequence_breakers if sampling.dry_multiplier else ()
        if texts and texts not in self._breakers:
            self._breakers = {texts: find_breakers(texts, self._tokenizer)}
        return Sampler(sampling, self._breakers.get(texts))


def _changed(sampling: Sampling, changes: dict[str, Any]) -> Sampling:
    unknown = sorted(set(changes) - SAMPLING_NAMES)
    if unknown:
        raise OptionError(f"{unknown[0]} is not a sampling option; see gguf_moe.Sampling.")
    return replace(sampling, **changes)
