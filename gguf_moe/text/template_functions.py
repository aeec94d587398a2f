"""What chat templates expect besides Jinja itself, by the names that transformers gives it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import SecurityError

from gguf_moe.errors import TemplateError


class Generation(Extension):
    """{% generation %} marks the model's own words for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        """What stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: Any = "") -> None:
    """Refuse the messages."""
    raise TemplateError(f"The chat template refuses the messages: {str(message)[:1000]}")


def strftime_now(format: str) -> str:
    """The local time."""
    if len(format) > 100 or re.search(r"\d{3}", format):
        raise SecurityError("the format of strftime_now is too long")
    return datetime.now().strftime(format)


def from_json(text: str) -> Any:
    """The value of JSON; the templates that llama.cpp has for DeepSeek V3.2 use it."""
    return json.loads(text)
