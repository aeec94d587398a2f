"""Rendering a chat template that may be hostile, as it comes with a model and a model may come from anyone.

Jinja's immutable sandbox keeps a template from Python's internals, but not from using up time and memory.
Here everything that loops, calls, or makes text draws on a Budget. The syntax tree is changed so that loops
and macros pay for each round; operators, filters, tests and calls pay through the environment. Filters and
methods whose result is much larger than what they read pay before they start.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from gguf_moe.text import budget as cost
from gguf_moe.text import payments
from gguf_moe.text.budget import Budget
from gguf_moe.text.prices import STRING_METHODS, WIDE_FORMAT, Prices, check_width, words
from gguf_moe.text.template_functions import Generation, from_json, raise_exception, strftime_now

INPUT_FACTOR = 400
"""Units for each unit that it takes to read the messages and tools once."""

MAX_INPUT_UNITS = 1_000_000_000

MAX_NODES = 10_000
"""Size of a template's syntax tree, which takes time to compile. The largest in use have 1,500."""

_REMOVED_FILTERS = words(
    "batch center filesizeformat format pprint slice striptags urlize wordcount wordwrap xmlattr"
)
_LAZY_FILTERS = words("map reject rejectattr select selectattr")
_CHEAP_FILTERS = words("attr count d default first items last length random")
_HEAVY_FILTERS = words(
    "capitalize dictsort e escape forceescape from_json groupby indent max min sort title tojson unique "
    "urlencode"
)
_COMPARING_TESTS = words(
    "!= < <= == > >= divisibleby eq equalto filter ge greaterthan gt in le lessthan lower lt ne test upper"
)
_LOOKUP_METHODS = words("append get items keys values")
_OWN_LIST_METHODS = words("append pop")
"""What Jinja's immutable sandbox forbids, and Kimi-K2's template does to a list that it has made."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering: what its templates do is paid from `budget`.

    given: the ids of the caller's lists, which a template must not change; they outlive the rendering.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, budget: Budget, given: frozenset[int] = frozenset()) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=self._output,
            optimized=False,
            cache_size=0,
        )
        self.budget = budget
        self._given = given
        self._prices = Prices(budget)
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
        self._prices.pay_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

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
        """Whether a template may read it.

        Of a number nothing, of a str only the methods that can be paid, of its own lists also two that change
        them.
        """
        if type(obj) is list and attr in _OWN_LIST_METHODS:
            return id(obj) not in self._given
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr not in STRING_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and str.format_map in Jinja's sandboxed form, paid for."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        text = value.__self__

        def paid(*args: Any, **kwargs: Any) -> str:
            self._prices.check_format(text, (args, kwargs), WIDE_FORMAT, text.count("{"))
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
            self._prices.pay_string_method(owner, __obj.__name__, args, kwargs)
        elif isinstance(owner, list | tuple | Mapping):
            self.budget.walk(args, cost.MAKE)
            if __obj.__name__ not in _LOOKUP_METHODS:
                self.budget.walk(owner, cost.READ)
        elif not isinstance(__obj, Macro):
            self.budget.walk((args, kwargs), cost.READ)
        return self.budget.make(super().call(__context, __obj, *args, **kwargs))

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
                self._prices.pay_arguments(name, value, rest, kwargs)
            return function(*passed, value, *rest, **kwargs)

        return paid

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
        check_width(indent or 0)
        check_width("".join(separators or ()))
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None:
            return encoder.encode(value)
        return "".join([self.budget.make(chunk) for chunk in encoder.iterencode(value)])


def compile_template(source: str) -> Any:
    """A template as a code object for `render_template`. Raises what Jinja and Python's compiler raise."""
    return Sandbox(Budget()).compile(source)


def _lists_in(value: Any) -> Iterator[int]:
    """The id of each list in a value, at all depths."""
    if isinstance(value, list):
        yield id(value)
    if isinstance(value, Mapping):
        value = value.values()
    if not isinstance(value, str | bytes) and isinstance(value, Iterable) and not isinstance(value, Iterator):
        for item in value:
            yield from _lists_in(item)


def render_template(code: Any, variables: Mapping[str, Any]) -> Iterator[str]:
    """The text of a compiled template, in pieces. Its budget grows with what the caller gives to it."""
    inputs = Budget(MAX_INPUT_UNITS)
    inputs.walk(variables, cost.READ)
    budget = Budget(cost.UNITS + INPUT_FACTOR * (MAX_INPUT_UNITS - inputs.left))
    sandbox = Sandbox(budget, frozenset(_lists_in(variables)))
    return jinja2.Template.from_code(sandbox, code, sandbox.globals).generate(**variables)
