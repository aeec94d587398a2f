"""Rendering a chat template that may be hostile, as it comes with a model and a model may come from anyone.

Jinja's immutable sandbox keeps a template from Python's internals, but not from using up time and memory.
Here everything that loops, calls, or makes text draws on a Budget. The syntax tree is changed so that loops
and macros pay for each round; operators, filters, tests and calls pay through the environment. Filters and
methods whose result is much larger than what they read pay before they start.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from gguf_moe.text import budget as cost
from gguf_moe.text import payments
from gguf_moe.text.budget import Budget, size
from gguf_moe.text.template_functions import Generation, from_json, raise_exception, strftime_now

INPUT_FACTOR = 400
"""Units for each unit that it takes to read the messages and tools once."""

MAX_INPUT_UNITS = 1_000_000_000

MAX_NODES = 10_000
"""Size of a template's syntax tree, which takes time to compile. The largest in use have 1,500."""

MAX_PRECISION = 50
"""Decimal digits that a template may round to."""

MAX_WIDTH = 200
"""Characters that a template may pad or indent by."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REMOVED_FILTERS = _words(
    "batch center filesizeformat format pprint slice striptags urlize wordcount wordwrap xmlattr"
)
_LAZY_FILTERS = _words("map reject rejectattr select selectattr")
_CHEAP_FILTERS = _words("attr count d default first items last length random")
_HEAVY_FILTERS = _words(
    "capitalize dictsort e escape forceescape from_json groupby indent max min sort title tojson unique "
    "urlencode"
)
_COMPARING_TESTS = _words(
    "!= < <= == > >= divisibleby eq equalto filter ge greaterthan gt in le lessthan lower lt ne test upper"
)

_STRING_METHODS = _words(
    "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower "
    "lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper zfill"
)
_PADDING_METHODS = _words("center ljust rjust zfill")
# They may compare each character of the text with each of the argument.
_SLOW_METHODS = _words("lstrip rfind rindex rpartition rsplit rstrip strip")
_LOOKUP_METHODS = _words("get items keys values")

# A width of three digits, a width taken from the arguments.
_WIDE_PERCENT = re.compile(r"\d{3}|\*")
_WIDE_FORMAT = re.compile(r"\d{3}|\{[^{}]*\{")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering: what its templates do is paid from `budget`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=self._output,
            optimized=False,
            cache_size=0,
        )
        self.budget = budget
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters |= {"tojson": self._tojson, "from_json": from_json}
        self.filters = {name: self._paid_filter(name, f) for name, f in self.filters.items()}
        self.filters |= {
            payments.SPEND: budget.spend,
            payments.COUNTED: budget.counted,
            payments.COMPARED: lambda value: budget.walk(value, cost.READ),
            payments.SEARCHED: self._searched,
            payments.MADE: budget.make,
            payments.JOINED: self._concatenate,
        }
        self.tests = {
            name: self._paid_test(test) if name in _COMPARING_TESTS else test
            for name, test in self.tests.items()
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            raise SecurityError(f"it has more than {MAX_NODES} nodes")
        return payments.AddPayments().visit(tree)

    def _output(self, value: Any) -> Any:
        if not isinstance(value, Undefined):
            self.budget.walk(value, cost.MAKE if isinstance(value, str | int | float) else cost.HEAVY)
        return value

    def _searched(self, value: Any) -> Any:
        """Pay for `constant in value`."""
        if not isinstance(value, Mapping) and hasattr(value, "__len__"):
            each = cost.LOOKUP if isinstance(value, list | tuple) else cost.READ
            self.budget.spend(each * len(value))
        return value

    def _concatenate(self, values: tuple[Any, ...]) -> str:
        return "".join([str(self._output(value)) for value in values])

    # Operators

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make something large."""
        self.budget.spend(cost.LOOKUP)
        if isinstance(left, int) and isinstance(right, int):
            _check_number(operator, left, right)
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            n, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(value, str):
                self.budget.spend(cost.MAKE * size(value) * n)
            elif isinstance(value, list | tuple):
                self.budget.spend(cost.ELEMENT * len(value) * n)
        elif operator == "+":
            self.budget.make(left)
            self.budget.make(right)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right, _WIDE_PERCENT, left.count("%"))
        return super().call_binop(context, operator, left, right)

    def _check_format(self, text: str, arguments: Any, wide: re.Pattern[str], n_fields: int) -> None:
        if wide.search(text):
            raise SecurityError("a field of a format string is too wide")
        before = self.budget.left
        self.budget.walk(arguments, cost.HEAVY)
        self.budget.spend(n_fields * (before - self.budget.left + 100 * cost.MAKE) + cost.MAKE * size(text))

    # Attributes, methods and functions

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`."""
        self.budget.spend(cost.CALL)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`."""
        self.budget.spend(cost.CALL)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read it: of a number nothing, of a str only the methods that can be paid."""
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr not in _STRING_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and str.format_map in Jinja's sandboxed form, paid for."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        text = value.__self__

        def paid(*args: Any, **kwargs: Any) -> str:
            self._check_format(text, (args, kwargs), _WIDE_FORMAT, text.count("{"))
            return formatted(*args, **kwargs)

        return paid

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call from the template. Macros pay in their bodies, and for iterators when they use them up."""
        self = __self
        self.budget.spend(cost.CALL + cost.LOOKUP * (len(args) + len(kwargs)))
        owner = getattr(__obj, "__self__", None)
        if not isinstance(__obj, Macro):
            args = tuple([list(arg) if isinstance(arg, Iterator) else arg for arg in args])
        if isinstance(owner, str):
            self._pay_string_method(owner, __obj.__name__, args, kwargs)
        elif isinstance(owner, list | tuple | Mapping):
            self.budget.walk(args, cost.MAKE)
            if __obj.__name__ not in _LOOKUP_METHODS:
                self.budget.walk(owner, cost.READ)
        elif not isinstance(__obj, Macro):
            self.budget.walk((args, kwargs), cost.READ)
        return self.budget.make(super().call(__context, __obj, *args, **kwargs))

    def _pay_string_method(
        self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.budget.walk((text, args, kwargs), cost.MAKE)
        if name in _PADDING_METHODS:
            _check_width(args[0] if args else 0)
        elif name == "replace":
            self._pay_replace(text, *args[:2])
        elif name == "join" and args and hasattr(args[0], "__len__"):
            self.budget.spend(cost.MAKE * size(text) * len(args[0]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = args[0] if args and isinstance(args[0], str) else kwargs.get("sep")
            n_pieces = text.count(separator) + 1 if separator else len(text)
            self.budget.spend(cost.ELEMENT * n_pieces)

        if name in _SLOW_METHODS:
            self._pay_slow_search(text, *args[:1], **kwargs)

    def _pay_slow_search(self, text: str, sought: Any = None, **kwargs: Any) -> None:
        for argument in (sought, *kwargs.values()):
            if isinstance(argument, str):
                self.budget.spend(cost.READ * len(text) * len(argument))

    def _pay_replace(self, text: str, old: Any = "", new: Any = "") -> None:
        self.budget.spend(cost.MAKE * size(str(new)) * text.count(str(old)))

    # Filters and tests

    def _paid_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        n_passed = 1 if hasattr(function, "jinja_pass_arg") else 0
        rate = cost.HEAVY if name in _HEAVY_FILTERS else cost.MAKE

        @functools.wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            passed, (value, *rest) = args[:n_passed], args[n_passed:]
            self.budget.spend(cost.CALL)
            self.budget.walk((rest, kwargs), rate)
            if name in _LAZY_FILTERS:
                value = self.budget.counted(value, cost.CALL) if value else value
            elif name == "list":
                self.budget.spend(cost.ELEMENT * len(value) if hasattr(value, "__len__") else 0)
            elif name not in _CHEAP_FILTERS:
                if isinstance(value, Iterator):
                    value = [self.budget.walk(item, rate) for item in value]
                else:
                    self.budget.walk(value, rate)
                self._check_arguments(name, value, rest, kwargs)
            return function(*passed, value, *rest, **kwargs)

        return paid

    def _check_arguments(self, name: str, value: Any, rest: list[Any], kwargs: Mapping[str, Any]) -> None:
        if name == "replace":
            self._pay_replace(str(value), *rest[:2], **{k: v for k, v in kwargs.items() if k != "count"})
        elif name == "indent":
            width = rest[0] if rest else kwargs.get("width", 4)
            _check_width(width)
            self.budget.spend(cost.MAKE * MAX_WIDTH * str(value).count("\n"))
        elif name == "join" and hasattr(value, "__len__"):
            separator = rest[0] if rest else kwargs.get("d", "")
            self.budget.spend(cost.MAKE * size(str(separator)) * len(value))
        elif name == "trim":
            self._pay_slow_search(str(value), *rest[:1], **kwargs)
        elif name == "int" and len(str(value)) > 1000:
            raise SecurityError("a number is too large")
        elif name == "round":
            _check_precision(rest[0] if rest else kwargs.get("precision", 0))
        elif name == "sum" and (len(rest) > 1 or "start" in kwargs):
            raise SecurityError("the filter sum takes no start value here")

    def _paid_test(self, function: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            self.budget.walk((args, kwargs), cost.READ)
            return function(*args, **kwargs)

        return paid

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it; unlike Jinja's own filter it does not escape HTML."""
        _check_width(indent or 0)
        _check_width("".join(separators or ()))
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None:
            return encoder.encode(value)
        return "".join([self.budget.make(chunk) for chunk in encoder.iterencode(value)])


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


def _check_width(width: Any) -> None:
    if (width if isinstance(width, int) else len(str(width))) > MAX_WIDTH:
        raise SecurityError(f"a text is padded by more than {MAX_WIDTH} characters")


def compile_template(source: str) -> Any:
    """A template as a code object for `render_template`. Raises what Jinja and Python's compiler raise."""
    return Sandbox(Budget()).compile(source)


def render_template(code: Any, variables: Mapping[str, Any]) -> Iterator[str]:
    """The text of a compiled template, in pieces. Its budget grows with what the caller gives to it."""
    inputs = Budget(MAX_INPUT_UNITS)
    inputs.walk(variables, cost.READ)
    sandbox = Sandbox(Budget(cost.UNITS + INPUT_FACTOR * (MAX_INPUT_UNITS - inputs.left)))
    return jinja2.Template.from_code(sandbox, code, sandbox.globals).generate(**variables)
