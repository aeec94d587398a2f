"""The key-value pairs of a file, with typed reads: who asks for an integer gets one, or a clear error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gguf_moe.checkpoint.foreign import shown
from gguf_moe.checkpoint.parser import Value
from gguf_moe.errors import GGUFError

T = TypeVar("T")

_REQUIRED: Any = object()


class Metadata(Mapping[str, Value]):
    """The values of a file, read-only, by key.

    Arrays of numbers are read-only numpy arrays of the stored type, arrays of strings are lists. In a list,
    bytes that are not UTF-8 are lone surrogates (surrogateescape); in a single string they are U+FFFD.

    A typed read raises GGUFError when the value is of another type or out of range, and when it is missing
    and no default is given. The message names the file, the key, the value, and what is expected. A default
    is returned as it is.
    """

    def __init__(
        self, path: Path, values: dict[str, Value], type_names: dict[str, str], prefix: str = ""
    ) -> None:
        self.path = path
        self.prefix = prefix
        self._values = values
        self._type_names = type_names

    def __getitem__(self, key: str) -> Value:
        return self._values[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self.prefix) for key in self._values if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def architecture(self) -> str:
        """The value of general.architecture, which is also the prefix of the model's own keys."""
        return Metadata(self.path, self._values, self._type_names).string("general.architecture")

    @property
    def arch(self) -> Metadata:
        """The architecture's own keys: `arch.integer("block_count")` reads llama.block_count."""
        return Metadata(self.path, self._values, self._type_names, f"{self.architecture}.")

    def type_name(self, key: str) -> str:
        """The stored type of a value: "u32", "str", "arr[str, 49152]". Raises KeyError for an unknown key."""
        return self._type_names[self.prefix + key]

    def string(self, key: str, default: T = _REQUIRED) -> str | T:
        """A string."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def boolean(self, key: str, default: T = _REQUIRED) -> bool | T:
        """A bool."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "a bool")
        return value

    def integer(
        self, key: str, default: T = _REQUIRED, *, minimum: int | None = None, maximum: int | None = None
    ) -> int | T:
        """An integer of any width, `minimum` and `maximum` included. A bool is not an integer."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        if type(value) is not int or not _within(value, minimum, maximum):
            raise self.wrong(key, "an integer" + _range(minimum, maximum))
        return value

    def number(
        self,
        key: str,
        default: T = _REQUIRED,
        *,
        positive: bool = False,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float | T:
        """A finite float or integer, as a float; greater than 0 when `positive`."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        kind = "a finite number greater than 0" if positive else "a finite number"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, kind + _range(minimum, maximum))
        if (positive and value <= 0) or not _within(value, minimum, maximum):
            raise self.wrong(key, kind + _range(minimum, maximum))
        return float(value)

    def strings(self, key: str, default: T = _REQUIRED) -> list[str] | T:
        """An array of strings, as a new list."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        if not isinstance(value, list):
            raise self.wrong(key, "an array of strings")
        return list(value)

    def integers(self, key: str, default: T = _REQUIRED) -> np.ndarray | T:
        """An array of integers, read-only, of the stored type."""
        return self._array(key, default, "iu", "an array of integers")

    def numbers(self, key: str, default: T = _REQUIRED) -> np.ndarray | T:
        """An array of finite floats or integers, read-only, of the stored type."""
        return self._array(key, default, "fiu", "an array of finite numbers")

    def booleans(self, key: str, default: T = _REQUIRED) -> np.ndarray | T:
        """An array of bools, read-only."""
        return self._array(key, default, "b", "an array of bools")

    def per_layer(
        self,
        key: str,
        n_layer: int,
        default: T = _REQUIRED,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> tuple[int, ...] | T:
        """One integer for each layer, from an integer that holds for all or from an array of `n_layer`.

        An array of bools counts as 0 and 1.
        """
        if key not in self:
            return self._default(key, default)
        if not isinstance(self[key], np.ndarray):
            return (self.integer(key, minimum=minimum, maximum=maximum),) * n_layer
        layers = tuple(int(value) for value in self._array(key, _REQUIRED, "iub", "an array of integers"))
        if len(layers) != n_layer:
            raise self.wrong(key, f"one integer, or an array of {n_layer}, one for each layer")
        for il, value in enumerate(layers):
            if not _within(value, minimum, maximum):
                raise self._error(f"{key} is {value} for layer {il}", "an integer" + _range(minimum, maximum))
        return layers

    def wrong(self, key: str, expected: str) -> GGUFError:
        """The error for a value that is there but is not `expected`, a phrase such as "an even integer"."""
        value, type_name = self[key], self.type_name(key)
        found = f"{shown(value)} ({type_name})" if isinstance(value, int | float | str) else f"an {type_name}"
        return self._error(f"{key} is {found}", expected)

    def _error(self, found: str, expected: str) -> GGUFError:
        return GGUFError(
            f"{self.path}: {self.prefix}{found}, but must be {expected}; "
            "the file is damaged or was converted wrongly: download or convert it again."
        )

    def _default(self, key: str, default: T) -> T:
        if default is _REQUIRED:
            raise GGUFError(
                f"{self.path}: the key {self.prefix}{key} is missing; "
                "the file is damaged or was converted wrongly: download or convert it again."
            )
        return default

    def _array(self, key: str, default: T, kinds: str, expected: str) -> np.ndarray | T:
        """An array whose numpy dtype.kind is one of `kinds`, without NaN and infinities."""
        if key not in self:
            return self._default(key, default)
        value = self[key]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or not np.isfinite(value).all():
            raise self.wrong(key, expected)
        return value


def _within(value: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f" of at least {minimum}"
    if minimum is None:
        return f" of at most {maximum}"
    return f" from {minimum} to {maximum}"
