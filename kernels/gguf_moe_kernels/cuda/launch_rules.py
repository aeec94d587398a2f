"""How the launch rules of kernels are written down and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Size = tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """How many blocks of how many threads, and the bytes of shared memory that a block asks for."""

    grid: Size
    block: Size
    shared: int = 0


Rule = Callable[[Any, int], Launch]
"""rule(arguments, rows): the launch for a struct's fields, and for at most so many rows."""


class Rules(dict[str, Rule]):
    """Rules by the kernel's name, "file.function"; one that ends in "_*" stands for all weight types."""

    def of(self, *names: str) -> Callable[[Rule], Rule]:
        """Decorator: the function is the rule of these kernels."""

        def add(function: Rule) -> Rule:
            self.update(dict.fromkeys(names, function))
            return function

        return add


def blocks(n: int, size: int) -> int:
    """How many parts of `size` hold n."""
    return max(-(-n // size), 1)
