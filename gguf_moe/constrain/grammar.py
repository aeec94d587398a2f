"""What a text must be, from the forms that OpenAI, llama.cpp and llama-cpp-python have for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any

from gguf_moe.errors import OptionError

MAX_LENGTH = 1 << 16
"""Characters of a schema or grammar. Some take time that grows with the square of it."""
MAX_MULTIPLE = 100_000
"""The largest `multipleOf`, without its factors 2 and 5: a large one takes minutes and much memory."""

# As llama.cpp: without a limit, a model that is unsure goes on writing white space.
WHITE_SPACE = r" |\n{1,2}[ \t]{0,20}"
ANY_OBJECT = {"type": "object"}


class Kind(Enum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    RULES = "grammar"
    """Rules in llguidance's Lark, or in llama.cpp's GBNF."""
    TOOL_CHOICE = "tool_choice"
    """Rules in Lark for a call of a tool."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must be. Raises OptionError if it is too large, or is not Unicode."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        name = self.kind.value
        if len(self.text) > MAX_LENGTH:
            raise OptionError(
                f"{name} has {len(self.text)} characters, but at most {MAX_LENGTH} are allowed; shorten it."
            )
        if any("\ud800" <= character <= "\udfff" for character in self.text):
            raise OptionError(f"{name} is not Unicode: it has half of a surrogate pair; write it in UTF-8.")
        product = math.prod(_multiples(self.text))
        if product > MAX_MULTIPLE:
            raise OptionError(
                f"{name} has multipleOf with factors of {product} together, but at most {MAX_MULTIPLE} "
                "can be followed; use smaller ones."
            )


def find_grammar(
    *,
    response_format: Mapping[str, Any] | None = None,
    json_schema: Any = None,
    grammar: str | None = None,
    regex: str | None = None,
) -> Grammar | None:
    """The grammar that a caller asks for, None if the text is free.

    response_format: OpenAI's. json_schema: an object, or its text. grammar: Lark or GBNF. An empty text is
    none. Raises OptionError if it is wrong, or if more than one is given.
    """
    found: dict[str, Grammar] = {}
    if response_format is not None and (schema := _schema_of(response_format)) is not None:
        found["response_format"] = _of_schema(schema)
    if json_schema not in (None, ""):
        found["json_schema"] = _of_schema(json_schema)
    for name, text, kind in (("grammar", grammar, Kind.RULES), ("regex", regex, Kind.REGEX)):
        if text in (None, ""):
            continue
        if not isinstance(text, str):
            raise OptionError(f"{name} is {str(text)[:80]!r}, but must be a text.")
        found[name] = Grammar(kind, text)
    if len(found) > 1:
        raise OptionError(f"{' and '.join(found)} exclude each other; give one.")
    return next(iter(found.values()), None)


def _schema_of(response_format: Any) -> Any:
    """The schema that a response_format names, or None for text."""
    kind = response_format.get("type", "text") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return response_format.get("schema") or ANY_OBJECT
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise OptionError("response_format has the type json_schema, but no json_schema.schema; add it.")
        return schema
    raise OptionError(
        f"the type of response_format is {str(kind)[:80]!r}, but must be text, json_object or json_schema."
    )


def _of_schema(schema: Any) -> Grammar:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as e:
            raise OptionError(f"the JSON schema is not JSON ({str(e)[:80]}).") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise OptionError(f"the JSON schema is {str(schema)[:80]!r}, but must be an object.")
    try:
        return Grammar(Kind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as e:
        raise OptionError(f"the JSON schema cannot be written as JSON ({str(e)[:80]}).") from None


def _multiples(text: str) -> set[int]:
    """The values of `multipleOf` in a text with JSON schemas, as whole numbers without factors 2 and 5."""
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), text)
    found = set()
    for number in re.findall(r'"multipleOf"\s*:\s*([-+.\w]+)', text):
        try:
            digits = Decimal(number).as_tuple().digits
        except InvalidOperation:
            continue
        n = int("".join(map(str, digits))) or 1
        for factor in (2, 5):
            while n % factor == 0:
                n //= factor
        found.add(n)
    return found
