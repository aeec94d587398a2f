"""From the JSON of a request to what is to be generated. Unknown names are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gguf_moe.errors import OptionError
from gguf_moe.sample import Sampling

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_LOGPROBS = 20


class RequestError(Exception):
    """The request is wrong: an HTTP status, and one sentence. param: the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.param = param


@dataclass(frozen=True, slots=True)
class Wanted:
    """What all kinds of completions have in common."""

    n: int
    stream: bool
    include_usage: bool
    """A stream ends with a chunk that has the usage."""
    n_logprobs: int | None
    max_tokens: int | None
    stop: tuple[str, ...]
    sampling: Sampling
    constraint: dict[str, Any]
    """What the answers must be: arguments of Model.continuation."""

    def options_of(self, choice: int) -> dict[str, Any]:
        """Arguments of Model.continuation for one of the n choices; each has a seed of its own."""
        seed = self.sampling.seed
        sampling = self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) % (1 << 64))
        return {
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "sampling": sampling,
            "n_logprobs": self.n_logprobs,
            **self.constraint,
        }


def read_prompts(body: Mapping[str, Any]) -> list[str | list[int]]:
    """The prompts of a completion: texts or token ids, one or several."""
    prompt = body.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) and not _are(prompt, int) else [prompt]
    if not prompts or not all(isinstance(p, str) or (isinstance(p, list) and _are(p, int)) for p in prompts):
        raise RequestError(400, "prompt must be a text, a list of token ids, or a list of these.", "prompt")
    return prompts


def read_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat. Parts of a message must be text."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not _are(messages, dict):
        raise RequestError(400, "messages must be a list of objects, with one at least.", "messages")
    return [_message(i, message) for i, message in enumerate(messages)]


def _message(number: int, message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise RequestError(400, f"message {number} has no role.", "messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            raise RequestError(400, f"message {number} has a part that is not text.", "messages")
        content = "".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise RequestError(400, f"the content of message {number} is not text.", "messages")
    return message | {"content": content or ""}


def read_prompt_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Model.chat_prompt: tools, and variables for the template by llama.cpp's name for them."""
    options: dict[str, Any] = _get(body, "chat_template_kwargs", dict, {})
    return options | {"tools": body.get("tools"), "tool_choice": body.get("tool_choice")}


def read_wanted(body: Mapping[str, Any], *, is_chat: bool) -> Wanted:
    """How to generate. Raises RequestError or OptionError for a value of the wrong type or out of range."""
    max_tokens = _get(body, "max_completion_tokens", int, _get(body, "max_tokens", int, None))
    return Wanted(
        n=_in_range("n", _get(body, "n", int, 1), MOST_CHOICES, at_least=1),
        stream=_get(body, "stream", bool, False),
        include_usage=bool(_get(body, "stream_options", dict, {}).get("include_usage")),
        n_logprobs=_logprobs(body, is_chat=is_chat),
        max_tokens=max_tokens,
        stop=_stops(body),
        sampling=_sampling(body),
        constraint=_constraint(body),
    )


def _constraint(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer must be: OpenAI's response_format, llama.cpp's json_schema and grammar, or a regex."""
    kinds = {"response_format": dict, "json_schema": (dict, str), "grammar": str, "regex": str}
    return {name: _get(body, name, kind, None) for name, kind in kinds.items()}


def _logprobs(body: Mapping[str, Any], *, is_chat: bool) -> int | None:
    if not is_chat:
        wanted = _get(body, "logprobs", int, None)
        return None if wanted is None else _in_range("logprobs", wanted, MOST_LOGPROBS)
    top = _in_range("top_logprobs", _get(body, "top_logprobs", int, 0), MOST_LOGPROBS)
    return top if _get(body, "logprobs", bool, False) else None


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not _are(stops, str) or len(stops) > MOST_STOPS:
        raise RequestError(400, f"stop must be a text or a list of {MOST_STOPS} texts at most.", "stop")
    return tuple(stops)


def _sampling(body: Mapping[str, Any]) -> Sampling:
    values: dict[str, Any] = {}
    for known in fields(Sampling):
        value = body.get(known.name)
        if value is None:
            continue
        if known.name == "logit_bias":
            values[known.name] = _logit_bias(value)
        elif known.name in ("samplers", "dry_sequence_breakers"):
            if not isinstance(value, list) or not _are(value, str):
                raise RequestError(400, f"{known.name} must be a list of texts.", known.name)
            values[known.name] = tuple(value)
        else:
            read = _float if isinstance(known.default, float) else _int
            values[known.name] = read(body, known.name)
    return Sampling(**values)


def _logit_bias(value: Any) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise RequestError(400, "logit_bias must map token ids to numbers.", "logit_bias") from None


def _int(body: Mapping[str, Any], name: str) -> int:
    value: int = _get(body, name, int, None)
    return value


def _float(body: Mapping[str, Any], name: str) -> float:
    try:
        return float(_get(body, name, (int, float), None))
    except OverflowError:
        raise RequestError(400, f"{name} is too large a number.", name) from None


def _get(body: Mapping[str, Any], name: str, kinds: Any, default: Any) -> Any:
    """A value of one of `kinds`; null counts as absent, and true is not a number."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise RequestError(400, f"{name} is {str(value)[:80]!r}, which has the wrong type.", name)
    return value


def _in_range(name: str, value: int, most: int, at_least: int = 0) -> int:
    if not at_least <= value <= most:
        raise OptionError(f"{name} is {value}, but must be from {at_least} to {most}.")
    return value


def _are(values: list[Any], kind: type) -> bool:
    """Whether all values are of a type; true and false are not numbers."""
    return all(isinstance(v, kind) and not (kind is int and isinstance(v, bool)) for v in values)
