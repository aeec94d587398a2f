"""The grammar of a call that a model must make, in its own way to write calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gguf_moe.constrain.grammar import WHITE_SPACE, Grammar, Kind
from gguf_moe.errors import OptionError
from gguf_moe.text.call_formats import Format, find_format, markers
from gguf_moe.text.reasoning import is_harmony

ControlId = Callable[[str], int | None]

_NO_ARGUMENTS = {"type": "object", "properties": {}}
_HARMONY = Format(
    signs=(), opening="<|channel|>commentary to=functions.", head="{name} <|constrain|>json<|message|>"
)


def tool_choice_grammar(template: str, tools: Sequence[Mapping[str, Any]], control_id: ControlId) -> Grammar:
    """One call of one of the tools, as the model of a chat template writes it.

    tools: in OpenAI's form. control_id: the id of a control token by its text, or None. Raises OptionError
    if such models' way to write calls is not known, or cannot be told to llguidance.
    """
    form = _HARMONY if is_harmony(template) else find_format(template)
    if form is None or form.quote:
        raise OptionError(
            "this model's chat template shows no way to call tools that can be demanded; "
            "leave tool_choice at auto."
        )
    opening = "" if form.is_bare else form.opening
    gap = "\n" if form.closing and not form.head else ""
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    lines = [
        f"start: {_written(opening + gap, control_id)} ({calls}) {_written(gap + form.closing, control_id)}"
    ]
    for i, tool in enumerate(tools):
        function = tool["function"]
        lines += _rules(
            form, f"{i}", function["name"], function.get("parameters") or _NO_ARGUMENTS, control_id
        )
    return Grammar(Kind.TOOL_CHOICE, "\n".join(lines))


def _rules(
    form: Format, number: str, name: str, schema: Mapping[str, Any], control_id: ControlId
) -> Iterator[str]:
    """The rules of the calls of one tool, the first of which is call_NUMBER."""
    schema = {"additionalProperties": False, **schema}
    if not form.head:
        before = f'{{"name": {json.dumps(name)}, "{form.arguments_key}": '
        before, after = ("[" + before, "}]") if form.is_list else (before, "}")
        yield f"call_{number}: {_literal(before)} arguments_{number} {_literal(after)}"
        yield f"arguments_{number}: {_json(schema)}"
        return
    head = form.head.replace("{name}", name).replace("{id}", "0" * 9)
    head = _written(head.replace("{functions.name:0}", f"functions.{name}:0"), control_id)
    tail = _written(form.tail, control_id)
    if not form.argument:
        yield f"call_{number}: {head} arguments_{number} {tail}"
        yield f"arguments_{number}: {_json(schema)}"
        return
    properties, required = schema.get("properties"), schema.get("required") or ()
    named = properties if isinstance(properties, Mapping) else {}
    rules = [f"argument_{number}_{i}{'' if key in required else '?'}" for i, key in enumerate(named)]
    yield f"call_{number}: {head} {' '.join(rules)} {tail}"
    before, after = form.argument.split("{value}")
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for i, (key, value) in enumerate(named.items()):
        rule = f"{number}_{i}"
        written = before.replace("{key}", key).replace("{is_text}", str(_is_text(value)).lower())
        begin = _written(written, control_id)
        yield from _argument(rule, begin, after, value, shared, control_id)


def _argument(
    number: str, begin: str, after: str, schema: Any, shared: Mapping[str, Any], control_id: ControlId
) -> Iterator[str]:
    """The rules of one argument: a text as it is, or JSON."""
    end = _written(after, control_id)
    schema = schema if isinstance(schema, Mapping) else {}
    values = _texts(schema)
    if values:
        yield f"argument_{number}: {begin} ({' | '.join(map(_literal, values))}) {end}"
    elif schema.get("type") != "string":
        yield f"argument_{number}: {begin} value_{number} {end}"
        yield f"value_{number}: {_json({**schema, **shared})}"
    elif end == _literal(after):
        yield f"argument_{number}: {begin} value_{number}"
        yield f"value_{number}[suffix={end}]: /(.|\\n)*/"
    else:
        yield f"argument_{number}: {begin} /(.|\\n)*/ {end}"


def _texts(schema: Any) -> list[str]:
    """The values of an argument that is one of some texts; none if it is anything else."""
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


def _is_text(schema: Any) -> bool:
    """Whether an argument is written as it is, not as JSON."""
    return bool(_texts(schema)) or (isinstance(schema, Mapping) and schema.get("type") == "string")


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}})
    except (TypeError, ValueError, RecursionError) as e:
        raise OptionError(f"a tool's parameters cannot be written as JSON ({str(e)[:80]}).") from None


def _written(text: str, control_id: ControlId) -> str:
    """A text in Lark, in which control tokens are tokens."""
    ids = {marker: control_id(marker) for marker in markers(text)}
    known = {marker: found for marker, found in ids.items() if found is not None}
    if not known:
        return _literal(text)
    pieces = re.split("(" + "|".join(map(re.escape, known)) + ")", text)
    return " ".join(f"<[{known[piece]}]>" if piece in known else _literal(piece) for piece in pieces if piece)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
