"""The choices of a reply in OpenAI's shapes, as chunks of a stream and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gguf_moe.completions import Message
from gguf_moe.generate import Piece
from gguf_moe.text.reasoning import Segment, Splitter
from gguf_moe.text.tokenizer import Tokenizer


class Choice(Protocol):
    """One of the texts that a request gets. Chunks are the elements of `choices` in a stream."""

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before any text."""

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of a piece."""

    def end(self, finish_reason: str | None) -> list[dict[str, Any]]:
        """The last chunks."""

    def whole(self) -> dict[str, Any]:
        """After `end`: the element of `choices` in a reply that is not streamed."""


class TextChoice:
    """A choice of a "text_completion"."""

    def __init__(self, index: int, tokenizer: Tokenizer):
        self._index = index
        self._tokenizer = tokenizer
        self._text = ""
        self._logprobs: dict[str, list[Any]] | None = None
        self._finish_reason: str | None = None

    def begin(self) -> list[dict[str, Any]]:
        return []

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        logprobs = self._read_logprobs(piece)
        self._text += piece.text
        return [self._chunk(piece.text, logprobs)] if piece.text or logprobs else []

    def end(self, finish_reason: str | None) -> list[dict[str, Any]]:
        self._finish_reason = finish_reason
        return [self._chunk("", None, finish_reason)]

    def whole(self) -> dict[str, Any]:
        return self._chunk(self._text, self._logprobs, self._finish_reason)

    def _chunk(self, text: str, logprobs: Any, finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _read_logprobs(self, piece: Piece) -> dict[str, list[Any]] | None:
        if not piece.logprobs:
            return None
        texts = {i: _text(self._tokenizer, i) for i in piece.logprobs}
        chosen, *_ = piece.logprobs
        new: dict[str, list[Any]] = {
            "tokens": [texts[chosen]],
            "token_logprobs": [piece.logprobs[chosen]],
            "top_logprobs": [{texts[i]: value for i, value in piece.logprobs.items()}],
            "text_offset": [len(self._text)],
        }
        self._logprobs = self._logprobs or {name: [] for name in new}
        for name, values in new.items():
            self._logprobs[name] += values
        return new


class ChatChoice:
    """A choice of a "chat.completion". n_top: how many top_logprobs."""

    def __init__(self, index: int, tokenizer: Tokenizer, splitter: Splitter, n_top: int = 0):
        self._index = index
        self._n_top = n_top
        self._tokenizer = tokenizer
        self._splitter = splitter
        self._message = Message()
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(self._message.begin())]

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        chunks = self._read(self._splitter.push(piece.text))
        if piece.logprobs:
            chosen, *_ = piece.logprobs
            entry = self._entry(chosen, piece.logprobs[chosen]) | {"top_logprobs": self._top(piece.logprobs)}
            self._logprobs.append(entry)
            chunks = chunks or [self._chunk({"content": ""})]
            chunks[0]["logprobs"] = {"content": [entry]}
        return chunks

    def end(self, finish_reason: str | None) -> list[dict[str, Any]]:
        rest = self._read(self._splitter.flush())
        self._finish_reason = self._message.finish_reason(finish_reason)
        return [*rest, self._chunk({}, self._finish_reason)]

    def whole(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "message": self._message.whole(),
            "logprobs": {"content": self._logprobs} if self._logprobs else None,
            "finish_reason": self._finish_reason,
        }

    def _read(self, segments: list[Segment]) -> list[dict[str, Any]]:
        return [self._chunk(self._message.add(segment)) for segment in segments]

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def _top(self, logprobs: Mapping[int, float]) -> list[dict[str, Any]]:
        likeliest = sorted(logprobs, key=lambda token: -logprobs[token])[: self._n_top]
        return [self._entry(token, logprobs[token]) for token in likeliest]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": _text(self._tokenizer, token), "logprob": logprob, "bytes": list(data)}


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode(errors="replace")
