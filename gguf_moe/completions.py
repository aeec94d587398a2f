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


class Message:
    """An assistant's message, out of the parts of an answer."""

    def __init__(self) -> None:
        self._content: dict[str, Any] = {"role": "assistant", "content": ""}
        self._calls: list[dict[str, Any]] = []

    def begin(self) -> dict[str, Any]:
        """The first delta of a stream."""
        return {"role": "assistant", "content": ""}

    def add(self, segment: Segment) -> dict[str, Any]:
        """Put a part into the message; the delta that says the same."""
        if segment.call:
            call = segment.call.as_openai()
            self._calls.append(call)
            return {"tool_calls": [{"index": len(self._calls) - 1, **call}]}
        name = "reasoning_content" if segment.kind is Kind.REASONING else "content"
        self._content[name] = self._content.get(name, "") + segment.text
        return {name: segment.text}

    def whole(self) -> dict[str, Any]:
        """The message, so far."""
        if not self._calls:
            return self._content
        return self._content | {"content": self._content["content"] or None, "tool_calls": self._calls}

    def finish_reason(self, reason: str | None) -> str | None:
        """Why the answer ended, from why the generation did."""
        return "tool_calls" if self._calls and reason == "stop" else reason


def chat_completion(generation: Generation, splitter: Splitter, model_name: str) -> dict[str, Any]:
    """Run a generation to its end; a "chat.completion" object. Thoughts go to reasoning_content."""
    message = Message()
    for segment in _segments(generation, splitter):
        message.add(segment)
    choice = {
        "index": 0,
        "message": message.whole(),
        "logprobs": None,
        "finish_reason": message.finish_reason(generation.result.finish_reason),
    }
    return envelope("chatcmpl", "chat.completion", model_name) | {
        "choices": [choice],
        "usage": usage(generation.result),
    }


def stream_chat_completion(
    generation: Generation, splitter: Splitter, model_name: str
) -> Iterator[dict[str, Any]]:
    """The same as "chat.completion.chunk" objects: the role first, then its parts, then the finish_reason."""
    head = envelope("chatcmpl", "chat.completion.chunk", model_name)
    message = Message()

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice]}

    try:
        yield chunk(message.begin())
        for segment in _segments(generation, splitter):
            yield chunk(message.add(segment))
        reason = message.finish_reason(generation.result.finish_reason)
        yield chunk({}, reason) | {"usage": usage(generation.result)}
    finally:
        generation.close()


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
