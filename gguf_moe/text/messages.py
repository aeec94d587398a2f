"""Messages in OpenAI's form, as chat templates expect them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any


def for_template(messages: Iterable[Mapping[str, Any]], *, as_objects: bool) -> list[dict[str, Any]]:
    """The messages, each with a text as its content if it had none.

    as_objects: the arguments of calls, which OpenAI's form has as JSON texts, become objects if they are.
    """
    found = []
    for message in messages:
        message = dict(message)
        if message.get("content") is None:
            message["content"] = ""
        calls = message.get("tool_calls")
        if as_objects and isinstance(calls, list):
            message["tool_calls"] = [_with_object(call) for call in calls]
        found.append(message)
    return found


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(arguments or "{}")
            if isinstance(value, dict):
                return {**call, "function": {**function, "arguments": value}}
    return call
