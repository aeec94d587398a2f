"""Completions in OpenAI's dict shapes, so that apps written for that API need no new parsing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from gguf_moe.generate import Generation, Result
from gguf_moe.text.reasoning import Kind, Segment, Splitter


def completion(generation: Generation, model_name: str) -> dict[str, Any]:
    """Run a generation to its end; a "text_completion" object."""
    text = "".join(piece.text for piece in generation)
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": generation.result.finish_reason}
    return envelope("cmpl", "text_completion", model_name) | {
        "choices": [choice],
        "usage": usage(generation.result),
    }


def stream_completion(generation: Generation, model_name: str) -> Iterator[dict[str, Any]]:
    """The same as chunks; the last one has no text but the finish_reason."""
    head = envelope("cmpl", "text_completion", model_name)

    def chunk(text: str, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice]}

    try:
        for piece in generation:
            if piece.text:
                yield chunk(piece.text, None)
        yield chunk("", generation.result.finish_reason) | {"usage": usage(generation.result)}
    finally:
        generation.close()


def chat_completion(generation: Generation, splitter: Splitter, model_name: str) -> dict[str, Any]:
    """Run a generation to its end; a "chat.completion" object. Thoughts go to reasoning_content."""
    message = {"role": "assistant", "content": ""}
    for segment in _segments(generation, splitter):
        name = _FIELD[segment.kind]
        message[name] = message.get(name, "") + segment.text
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": generation.result.finish_reason,
    }
    return envelope("chatcmpl", "chat.completion", model_name) | {
        "choices": [choice],
        "usage": usage(generation.result),
    }


def stream_chat_completion(
    generation: Generation, splitter: Splitter, model_name: str
) -> Iterator[dict[str, Any]]:
    """The same as "chat.completion.chunk" objects: the role first, then text, then the finish_reason."""
    head = envelope("chatcmpl", "chat.completion.chunk", model_name)

    def chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice]}

    try:
        yield chunk({"role": "assistant", "content": ""}, None)
        for segment in _segments(generation, splitter):
            yield chunk({_FIELD[segment.kind]: segment.text}, None)
        yield chunk({}, generation.result.finish_reason) | {"usage": usage(generation.result)}
    finally:
        generation.close()


_FIELD = {Kind.ANSWER: "content", Kind.COMMENTARY: "content", Kind.REASONING: "reasoning_content"}


def _segments(generation: Generation, splitter: Splitter) -> Iterator[Segment]:
    for piece in generation:
        yield from splitter.push(piece.text)
    yield from splitter.flush()


def envelope(prefix: str, kind: str, model_name: str) -> dict[str, Any]:
    """What replies and chunks begin with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model_name,
    }


def usage(*results: Result, n: int = 1) -> dict[str, Any]:
    """The tokens of some generations; n of them, one after the other, share a prompt."""
    prompt = sum(len(result.prompt_token_ids) for result in results[::n])
    completed = sum(len(result.token_ids) for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completed,
        "total_tokens": prompt + completed,
        "prompt_tokens_details": {"cached_tokens": sum(result.n_reused for result in results[::n])},
    }
