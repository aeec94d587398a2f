"""How much a template may do: one number that every loop, call, operator and filter draws on.

The unit is about a nanosecond. What makes text costs more than what only reads it, so that the budget
also bounds the memory: four units a byte.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from typing import Any, TypeVar

from gguf_moe.errors import TemplateError

T = TypeVar("T")

UNITS = 200_000_000
"""Some tenths of a second, or 50 MB of text."""

STEP = 80  # one node of the template's syntax tree
LOOKUP = 500  # one operator, or one element of a container that is walked
CALL = 1500  # one attribute or item, or one call of a function, macro or filter
READ = 1  # a character that is compared or searched
MAKE = 4  # a byte of text that is made
HEAVY = 40  # a byte of what is escaped, sorted, or cut into many pieces
ELEMENT = 80  # an element of a list that is made
MAX_NUMBER_BITS = 4096

MAX_DEPTH = 100
"""Of nested lists: Python's own hash() of a tuple overflows the stack of a thread."""

_CONTAINERS = (list, tuple, Set, Mapping)


class Budget:
    """What is left for one rendering. Every method raises TemplateError when that is not enough."""

    def __init__(self, units: int = UNITS) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Take `units` from what is left."""
        self.left -= max(units, 0)
        if self.left < 0:
            raise TemplateError(
                "The chat template does too much work or makes too much text; "
                "it is broken or was made to do harm: use another template."
            )

    def walk(self, value: T, rate: int) -> T:
        """Spend `rate` for each byte in a value and some for each element, at all depths; the value.

        A list that holds another one many times counts it as many times, as whoever compares or prints it
        does. An iterator is not consumed, so its elements are not counted.
        """
        element = max(LOOKUP, 50 * rate)
        pending: list[Iterator[Any]] = [iter((value,))]
        while pending:
            if len(pending) > MAX_DEPTH:
                raise TemplateError(f"The chat template works on lists nested more than {MAX_DEPTH} deep.")
            for item in pending[-1]:
                if isinstance(item, str):
                    self.spend(element + rate * size(item))
                    continue
                self.spend(element)
                if isinstance(item, Mapping):
                    pending.append(itertools.chain.from_iterable(item.items()))
                    break
                if isinstance(item, _CONTAINERS) or type(item) in _VIEWS:
                    pending.append(iter(item))
                    break
                if isinstance(item, Sized) and hasattr(item, "__iter__"):
                    self.spend(element * len(item))
            else:
                pending.pop()
        return value

    def counted(self, iterable: Iterable[T], units: int) -> Iterator[T]:
        """The elements of `iterable`; each costs `units`."""
        for item in iterable:
            self.spend(units)
            yield item

    def make(self, value: T) -> T:
        """Spend what a new text or container costs, without its elements' own contents; the value."""
        if isinstance(value, str):
            self.spend(MAKE * size(value))
        elif isinstance(value, Mapping):
            self.spend(3 * ELEMENT * len(value))
        elif isinstance(value, Sized):
            self.spend(ELEMENT * len(value))
        return value


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


def size(text: str) -> int:
    """Bytes of a text in memory: one to four for a character."""
    return sys.getsizeof(text)
