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
    return _envelope("cmpl", "text_completion", model_name) | {
        "choices": [choice],
        "usage": _usage(generation.result),
    }


def stream_completion(generation: Generation, model_name: str) -> Iterator[dict[str, Any]]:
    """The same as chunks; the last one has no text but the finish_reason."""
    envelope = _envelope("cmpl", "text_completion", model_name)

    def chunk(text: str, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return envelope | {"choices": [choice]}

    try:
        for piece in generation:
            if piece.text:
                yield chunk(piece.text, None)
        yield chunk("", generation.result.finish_reason) | {"usage": _usage(generation.result)}
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
    return _envelope("chatcmpl", "chat.completion", model_name) | {
        "choices": [choice],
        "usage": _usage(generation.result),
    }


def stream_chat_completion(
    generation: Generation, splitter: Splitter, model_name: str
) -> Iterator[dict[str, Any]]:
    """The same as "chat.completion.chunk" objects: the role first, then text, then the finish_reason."""
    envelope = _envelope("chatcmpl", "chat.completion.chunk", model_name)

    def chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return envelope | {"choices": [choice]}

    try:
        yield chunk({"role": "assistant", "content": ""}, None)
        for segment in _segments(generation, splitter):
            yield chunk({_FIELD[segment.kind]: segment.text}, None)
        yield chunk({}, generation.result.finish_reason) | {"usage": _usage(generation.result)}
    finally:
        generation.close()


_FIELD = {Kind.ANSWER: "content", Kind.COMMENTARY: "content", Kind.REASONING: "reasoning_content"}


def _segments(generation: Generation, splitter: Splitter) -> Iterator[Segment]:
    for piece in generation:
        yield from splitter.push(piece.text)
    yield from splitter.flush()


def _envelope(prefix: str, kind: str, model_name: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model_name,
    }


def _usage(result: Result) -> dict[str, int]:
    prompt, completed = len(result.prompt_token_ids), len(result.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": prompt + completed}
