"""What a template's operators, methods and filters cost, paid before they start; some it may not have at all.

Each price is for what the built-in really does: how much it reads, makes and compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2.sandbox import SecurityError

from gguf_moe.text import budget as cost
from gguf_moe.text.budget import Budget, size

MAX_PRECISION = 50
"""Decimal digits that a template may round to."""

MAX_WIDTH = 200
"""Characters that a template may pad or indent by."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


STRING_METHODS = words(
    "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower "
    "lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper zfill"
)
_PADDING_METHODS = words("center ljust rjust zfill")
# They may compare each character of the text with each of the argument.
_SLOW_METHODS = words("lstrip rfind rindex rpartition rsplit rstrip strip")

# A width of three digits, a width taken from the arguments.
WIDE_PERCENT = re.compile(r"\d{3}|\*")
WIDE_FORMAT = re.compile(r"\d{3}|\{[^{}]*\{")


class Prices:
    """Takes what things cost from a budget. All raise SecurityError for what is too large or too dear."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def pay_operator(self, operator: str, left: Any, right: Any) -> None:
        """The operators that can make something large."""
        self._budget.spend(cost.LOOKUP)
        if isinstance(left, int) and isinstance(right, int):
            _check_number(operator, left, right)
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            n, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(value, str):
                self._budget.spend(cost.MAKE * size(value) * n)
            elif isinstance(value, list | tuple):
                self._budget.spend(cost.ELEMENT * len(value) * n)
        elif operator == "+":
            self._budget.make(left)
            self._budget.make(right)
        elif operator == "%" and isinstance(left, str):
            self.check_format(left, right, WIDE_PERCENT, left.count("%"))

    def check_format(self, text: str, arguments: Any, wide: re.Pattern[str], n_fields: int) -> None:
        """A text that is formatted; `wide` finds widths in its fields that are not allowed."""
        if wide.search(text):
            raise SecurityError("a field of a format string is too wide")
        before = self._budget.left
        self._budget.walk(arguments, cost.HEAVY)
        self._budget.spend(n_fields * (before - self._budget.left + 100 * cost.MAKE) + cost.MAKE * size(text))

    def pay_string_method(
        self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A method of a str."""
        self._budget.walk((text, args, kwargs), cost.MAKE)
        if name in _PADDING_METHODS:
            check_width(args[0] if args else 0)
        elif name == "replace":
            self._pay_replace(text, *args[:2])
        elif name == "join" and args and hasattr(args[0], "__len__"):
            self._budget.spend(cost.MAKE * size(text) * len(args[0]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) else kwargs.get("sep")
            n_pieces = text.count(separator) + 1 if separator else len(text)
            self._budget.spend(cost.ELEMENT * n_pieces)

        if name in _SLOW_METHODS:
            self._pay_slow_search(text, *args[:1], **kwargs)

    def _pay_slow_search(self, text: str, sought: Any = None, **kwargs: Any) -> None:
        for argument in (sought, *kwargs.values()):
            if isinstance(argument, str):
                self._budget.spend(cost.READ * len(text) * len(argument))

    def _pay_replace(self, text: str, old: Any = "", new: Any = "") -> None:
        self._budget.spend(cost.MAKE * size(str(new)) * text.count(str(old)))

    def pay_arguments(self, name: str, value: Any, rest: list[Any], kwargs: Mapping[str, Any]) -> None:
        """What a filter's arguments make it cost, besides reading its value."""
        if name == "replace":
            self._pay_replace(str(value), *rest[:2], **{k: v for k, v in kwargs.items() if k != "count"})
        elif name == "indent":
            width = rest[0] if rest else kwargs.get("width", 4)
            check_width(width)
            self._budget.spend(cost.MAKE * MAX_WIDTH * str(value).count("\n"))
        elif name == "join" and hasattr(value, "__len__"):
            separator = rest[0] if rest else kwargs.get("d", "")
            self._budget.spend(cost.MAKE * size(str(separator)) * len(value))
        elif name == "trim":
            self._pay_slow_search(str(value), *rest[:1], **kwargs)
        elif name == "int" and len(str(value)) > 1000:
            raise SecurityError("a number is too large")
        elif name == "round":
            _check_precision(rest[0] if rest else kwargs.get("precision", 0))
        elif name == "sum" and (len(rest) > 1 or "start" in kwargs):
            raise SecurityError("the filter sum takes no start value here")


def _check_number(operator: str, left: int, right: int) -> None:
    bits = left.bit_length()
    if operator == "*":
        bits += right.bit_length()
    elif operator == "**":
        bits *= max(right, 1)
    if bits > cost.MAX_NUMBER_BITS:
        raise SecurityError("a number is too large")


def _check_precision(precision: Any) -> None:
    if abs(precision) > MAX_PRECISION:
        raise SecurityError(f"a number is rounded to more than {MAX_PRECISION} digits")


def check_width(width: Any) -> None:
    """A width to pad or indent by: a number, or the text itself."""
    if (width if isinstance(width, int) else len(str(width))) > MAX_WIDTH:
        raise SecurityError(f"a text is padded by more than {MAX_WIDTH} characters")
