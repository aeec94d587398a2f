"""Completions in OpenAI's dict shapes, so that apps written for that API need no new parsing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gguf_moe.generate import Result

if TYPE_CHECKING:
    from gguf_moe.model import Generation


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


def chat_completion(generation: Generation, model_name: str) -> dict[str, Any]:
    """Run a generation to its end; a "chat.completion" object."""
    text = "".join(piece.text for piece in generation)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": generation.result.finish_reason,
    }
    return _envelope("chatcmpl", "chat.completion", model_name) | {
        "choices": [choice],
        "usage": _usage(generation.result),
    }


def stream_chat_completion(generation: Generation, model_name: str) -> Iterator[dict[str, Any]]:
    """The same as "chat.completion.chunk" objects: the role first, then text, then the finish_reason."""
    envelope = _envelope("chatcmpl", "chat.completion.chunk", model_name)

    def chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return envelope | {"choices": [choice]}

    try:
        yield chunk({"role": "assistant", "content": ""}, None)
        for piece in generation:
            if piece.text:
                yield chunk({"content": piece.text}, None)
        yield chunk({}, generation.result.finish_reason) | {"usage": _usage(generation.result)}
    finally:
        generation.close()


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
