"""Calls of tools in an answer, told from its text while it is written.

A call is given when it is complete and valid; what only looks like one stays text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from gguf_moe.text.call_formats import Format
from gguf_moe.text.overlap import overlap

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by the tool's name."""

_JSON = json.JSONDecoder()
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s;,]*")
_BARE_BEGINNINGS = ('{"name":', '{"type":')
_BARE_KEY = re.compile(r"([{,]\s*)([\w.-]+)(\s*:)")
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def new_id() -> str:
    """An id for a call. Mistral's templates refuse any that has not nine letters or digits."""
    return uuid.uuid4().hex[:9]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wants. arguments: the text of a JSON object."""

    name: str
    arguments: str
    id: str = field(default_factory=new_id)

    def as_openai(self) -> dict[str, Any]:
        """An element of a message's `tool_calls`."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class NotACall(Exception):
    """A text is no call. is_open: it is inside of a JSON text, where a call's end may stand."""

    def __init__(self, *, is_open: bool = False):
        super().__init__()
        self.is_open = is_open


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """The schemas of tools in OpenAI's form."""
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}


class CallParser:
    """Takes an answer piece by piece, and gives its text and its calls as soon as they are certain."""

    def __init__(self, form: Format, schemas: Schemas):
        self._form = form
        self._schemas = schemas
        self._held = ""
        self._searched = 0
        """Up to here `_held` has no end of the call that it begins with."""
        self._at_start = True
        self._after_call = False

    def push(self, text: str) -> list[str | ToolCall]:
        """What became certain with this text."""
        self._held += text
        return list(self._parts(at_end=False))

    def flush(self) -> list[str | ToolCall]:
        """What was held back, at the end of the answer, where a call's own end may be missing."""
        return list(self._parts(at_end=True))

    def _parts(self, at_end: bool) -> Iterator[str | ToolCall]:
        while self._held:
            found = self._opening()
            if found is None:
                yield from self._say(len(self._held) - (0 if at_end else self._n_uncertain()))
                return
            start, body = found
            if n_said := len(self._held[:start].rstrip()):
                yield from self._say(n_said)
            end, rest = self._end(body - n_said, at_end)
            if end < 0:
                return
            try:
                calls = read_calls(self._form, self._held[body - n_said : end], self._schemas)
            except NotACall as error:
                if error.is_open and end < len(self._held):
                    self._searched = end + 1
                else:
                    yield from self._say(rest)
                continue
            yield from calls
            self._held, self._searched, self._after_call = self._held[rest:], 0, True
            self._at_start = False

    def _opening(self) -> tuple[int, int] | None:
        """Where a call begins, and where what is in it begins."""
        start = self._held.find(self._form.opening)
        if self._bare().startswith(_BARE_BEGINNINGS):
            return 0, 0
        return None if start < 0 else (start, start + len(self._form.opening))

    def _end(self, body: int, at_end: bool) -> tuple[int, int]:
        """Where a call ends, and where the text behind it begins; -1 if that is not known yet."""
        marker = self._form.closing or self._form.opening
        end = self._held.find(marker, max(body, self._searched))
        if end >= 0:
            return end, end + len(self._form.closing)
        self._searched = max(0, len(self._held) - len(marker))
        return (len(self._held), len(self._held)) if at_end else (-1, -1)

    def _n_uncertain(self) -> int:
        """Characters at the end that may belong to a call: white space before it, and its beginning."""
        if (bare := self._bare()) and any(beginning.startswith(bare) for beginning in _BARE_BEGINNINGS):
            return len(self._held)
        n = overlap(self._held, self._form.opening)
        return len(self._held) - len(self._held[: len(self._held) - n].rstrip())

    def _bare(self) -> str:
        """The beginning of an answer that may be calls and nothing else, without white space."""
        return "".join(self._held[:200].split()) if self._form.is_bare and self._at_start else ""

    def _say(self, n: int) -> Iterator[str]:
        """The first n characters as text, without white space behind a call."""
        text, self._held, self._searched = self._held[:n], self._held[n:], 0
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = self._at_start = False
            yield text


def read_calls(form: Format, text: str, schemas: Schemas) -> list[ToolCall]:
    """The calls that stand between an opening and its end, at least one. Raises NotACall."""
    calls: list[ToolCall] = []
    at = _skip(_BETWEEN, text, 0)
    while at < len(text):
        more, at = _tagged_call(form, text, at, schemas) if form.head else _objects(text, at)
        calls += more
        at = _skip(_BETWEEN, text, at)
    if not calls or (form.is_bare and not {call.name for call in calls} <= schemas.keys()):
        raise NotACall
    return calls


def read_call(name: str, arguments: str) -> ToolCall:
    """A call whose arguments are JSON. Raises NotACall."""
    value, end = _decode(arguments.strip() or "{}", 0)
    if end < len(arguments.strip()):
        raise NotACall
    return _call(name, value)


def _objects(text: str, at: int) -> tuple[list[ToolCall], int]:
    """The calls of a JSON object or list, and where it ends."""
    value, at = _decode(text, at)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        inner = item.get("function") if isinstance(item, dict) else None
        found = inner if isinstance(inner, dict) else item
        if not isinstance(found, dict):
            raise NotACall
        arguments = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments, _ = _decode(arguments, 0)
        calls.append(_call(found.get("name"), arguments, item.get("id")))
    return calls, at


def _tagged_call(form: Format, text: str, at: int, schemas: Schemas) -> tuple[list[ToolCall], int]:
    """The call that has its name in a head, and where it ends."""
    head = form.head_pattern.match(text, at)
    if not head:
        raise NotACall
    at = head.end()
    arguments: Any = {}
    if form.quote:
        arguments, at = _decode(_as_json(text[at:], form.quote), 0)[0], len(text)
    elif form.argument:
        properties = schemas.get(head["name"], {}).get("properties")
        while found := form.argument_pattern.match(text, at):
            key = found["key"].strip()
            arguments[key] = _value(
                found["value"], properties.get(key) if isinstance(properties, Mapping) else None
            )
            at = found.end()
    else:
        arguments, at = _decode(text, at)
    tail = form.tail_pattern.match(text, at)
    if not tail:
        raise NotACall
    return [_call(head["name"], arguments, head.groupdict().get("id"))], tail.end()


def _call(name: Any, arguments: Any, call_id: Any = None) -> ToolCall:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise NotACall
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise NotACall from None
    return ToolCall(name, text, call_id) if call_id and isinstance(call_id, str) else ToolCall(name, text)


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends. Raises NotACall."""
    try:
        return _JSON.raw_decode(text, _skip(_SPACE, text, at))
    except (ValueError, RecursionError) as error:
        raise NotACall(is_open="Unterminated string" in str(error)) from None


def _as_json(text: str, quote: str) -> str:
    """An object whose keys have no quotes, and whose texts have others than JSON's. Raises NotACall."""
    pieces = text.split(quote)
    if len(pieces) % 2 == 0:
        raise NotACall(is_open=True)
    pieces[::2] = [_BARE_KEY.sub(r'\1"\2"\3', piece) for piece in pieces[::2]]
    pieces[1::2] = [json.dumps(piece, ensure_ascii=False) for piece in pieces[1::2]]
    return "".join(pieces)


def _value(text: str, schema: Any) -> Any:
    """An argument that is written without quotes, as its schema wants it: a text, or JSON."""
    types = _types(schema)
    if "string" in types and not (text == "null" and "null" in types):
        return text
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _types(schema: Any) -> set[str]:
    """Those of "string" and "null" that a schema allows a value to be."""
    if not isinstance(schema, Mapping):
        return set()
    options = [schema, *(o for name in ("anyOf", "oneOf") for o in _list(schema.get(name)))]
    found = set()
    for option in options:
        if isinstance(option, Mapping):
            named, values = option.get("type"), [*_list(option.get("enum")), option.get("const", 0)]
            for name, example in (("string", str), ("null", NoneType)):
                if name == named or name in _list(named) or any(isinstance(v, example) for v in values):
                    found.add(name)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found, "the pattern matches no text as well"
    return found.end()
