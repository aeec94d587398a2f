"""The header of a GGUF file, versions 2 and 3, as docs/gguf.md of the ggml repository defines it.

A header is: the magic, a version, the two counts, the key-value pairs, and the table of tensors. Every length
in it comes from whoever wrote the file. So each is compared with the bytes that are left before anything is
read, and with a budget of memory before anything is allocated.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gguf_moe.checkpoint.foreign import check_magic, how_to_complete, shown
from gguf_moe.errors import GGUFError

Value = int | float | bool | str | list[str] | np.ndarray

HEADER_MEMORY = 176 << 20
"""Bytes of Python objects that one header may become. The largest vocabulary in use needs half of it."""

RECORD_MEMORY = 2048
"""Bytes charged for a key or a tensor, besides its text; more than its objects, for they also take time."""

STRING_MEMORY = 40
"""Bytes charged for one string, besides 4 for each byte of its length field and its text (UCS-4 at worst)."""

MAX_STRING = 4 << 20
"""Bytes of one string. Chat templates, the longest that are real, have some ten thousand."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<QQ")
_ARRAY_HEAD = struct.Struct("<IQ")
_TENSOR_TAILS = {n: struct.Struct(f"<{n}QIQ") for n in (1, 2, 3, 4)}

_MIN_KEY_SIZE = 8 + 1 + 4 + 1  # length, one letter, type, the smallest value
_MIN_TENSOR_SIZE = 8 + 1 + 4 + 8 + 4 + 8  # length, one letter, n_dims, one dimension, type, offset

_BOOL, _STRING, _ARRAY = 7, 8, 9

# Value type id -> the name that we print, and the code that both struct and numpy know.
_NUMBERS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    _BOOL: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_SCALARS = {type_id: struct.Struct("<" + code) for type_id, (_, code) in _NUMBERS.items()}
_DTYPES = {type_id: np.dtype("<" + code) for type_id, (_, code) in _NUMBERS.items()}


class TensorInfo(NamedTuple):
    """One row of the tensor table, as stored; only the name and the number of dimensions are checked."""

    name: str
    shape: tuple[int, ...]  # GGUF order, fastest dimension first
    type_id: int
    offset: int  # bytes from the start of the data section


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. `type_names` has the stored type of each value: "u32", "str", "arr[str, 49152]"."""

    values: dict[str, Value]
    type_names: dict[str, str]
    tensors: list[TensorInfo]
    end: int  # offset of the first byte behind the header


def parse_header(path: Path, data: mmap.mmap | bytes) -> Header:
    """Read the header of the file whose bytes are `data`; `path` is for messages. Raises GGUFError."""
    check_magic(path, data)
    reader = _Reader(path, data)
    reader.pos = 8  # behind the magic and the version
    n_tensors, n_kv = reader.unpack(_COUNTS)
    reader.require_records("keys", n_kv, _MIN_KEY_SIZE)
    reader.require_records("tensors", n_tensors, _MIN_TENSOR_SIZE)
    values: dict[str, Value] = {}
    type_names: dict[str, str] = {}
    for i in range(n_kv):
        reader.item = f"key {i + 1} of {n_kv}"
        key = reader.name(65535)
        if key in values:
            raise reader.error(f"the key {shown(key)} occurs twice")
        reader.item = f"the key {shown(key)}"
        type_names[key], values[key] = reader.value()
    return Header(values, type_names, _read_tensors(reader, n_tensors), reader.pos)


def _read_tensors(reader: _Reader, n_tensors: int) -> list[TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for i in range(n_tensors):
        reader.item = f"tensor {i + 1} of {n_tensors}"
        name = reader.name(64)
        if name in tensors:
            raise reader.error(f"the tensor {shown(name)} occurs twice")
        reader.item = f"the tensor {shown(name)}"
        n_dims = reader.unpack(_U32)[0]
        if n_dims not in _TENSOR_TAILS:
            raise reader.error(f"{reader.item} has {n_dims} dimensions, but GGUF allows 1 to 4")
        *shape, type_id, offset = reader.unpack(_TENSOR_TAILS[n_dims])
        tensors[name] = TensorInfo(name, tuple(shape), type_id, offset)
    return list(tensors.values())


class _Reader:
    """A cursor over the header. `item` names what is being read, for messages."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.pos = 0
        self.memory = HEADER_MEMORY
        self.item = "the header"

    def error(self, problem: str) -> GGUFError:
        return GGUFError(f"{self.path}: {problem}; the file is damaged: download or convert it again.")

    def require(self, nbytes: int) -> None:
        """Raise unless the file has `nbytes` more bytes."""
        left = self.size - self.pos
        if nbytes > left:
            raise GGUFError(
                f"{self.path}: {self.item} takes {nbytes} bytes, but the file ends after {left} of them; "
                f"{how_to_complete(self.path)}."
            )

    def spend(self, nbytes: int) -> None:
        """Take `nbytes` from the budget of memory."""
        self.memory -= nbytes
        if self.memory < 0:
            raise self.error(
                f"with {self.item} the header needs more than {HEADER_MEMORY >> 20} MiB, "
                "which no real model comes near"
            )

    def require_records(self, plural: str, n: int, min_size: int) -> None:
        self.item = f"the table of {n} {plural}"
        self.require(n * min_size)
        self.spend(n * RECORD_MEMORY)

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.require(layout.size)
        fields = layout.unpack_from(self.data, self.pos)
        self.pos += layout.size
        return fields

    def take(self, nbytes: int) -> bytes:
        self.require(nbytes)
        taken = self.data[self.pos : self.pos + nbytes]
        self.pos += nbytes
        return taken

    def text(self) -> bytes:
        nbytes = self.unpack(_U64)[0]
        self.require(nbytes)
        self.check_length(nbytes)
        self.spend(STRING_MEMORY + 4 * (8 + nbytes))
        return self.take(nbytes)

    def check_length(self, nbytes: int) -> None:
        if nbytes > MAX_STRING:
            raise self.error(f"{self.item} has a string of {nbytes} bytes, but {MAX_STRING} is the most")

    def name(self, max_size: int) -> str:
        """A key or a tensor's name: 1 to `max_size` bytes of UTF-8."""
        text = self.text()
        if not 1 <= len(text) <= max_size:
            raise self.error(f"the name of {self.item} has {len(text)} bytes, but must have 1 to {max_size}")
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self.error(f"the name of {self.item} is {shown(text)}, which is not UTF-8") from None

    def value(self) -> tuple[str, Value]:
        """The name of a value's type, and the value."""
        type_id = self.unpack(_U32)[0]
        if type_id == _STRING:
            return "str", self.text().decode(errors="replace")
        if type_id == _ARRAY:
            return self.array()
        if type_id not in _NUMBERS:
            raise self.error(f"{self.item} has the value type {type_id}, which GGUF does not define")
        number = self.unpack(_SCALARS[type_id])[0]
        if type_id == _BOOL:
            if number > 1:
                raise self.error(f"{self.item} is a bool stored as {number}, but must be 0 or 1")
            number = bool(number)
        return _NUMBERS[type_id][0], number

    def array(self) -> tuple[str, Value]:
        type_id, n = self.unpack(_ARRAY_HEAD)
        if type_id == _STRING:
            return f"arr[str, {n}]", self.strings(n)
        if type_id not in _NUMBERS:
            raise self.error(f"{self.item} is an array of value type {type_id}, which is not supported")
        dtype = _DTYPES[type_id]
        self.require(n * dtype.itemsize)
        self.spend(n * dtype.itemsize)
        numbers = np.frombuffer(self.take(n * dtype.itemsize), dtype)
        if type_id == _BOOL:
            if n and numbers.max() > 1:
                raise self.error(f"{self.item} is an array of bools that holds values other than 0 and 1")
            numbers = numbers.view(np.bool_)
        return f"arr[{_NUMBERS[type_id][0]}, {n}]", numbers

    def strings(self, n: int) -> list[str]:
        """`n` strings; bytes that are not UTF-8 become lone surrogates (surrogateescape), so none is lost.

        One plain loop: a vocabulary has some 150,000 tokens and as many merges.
        """
        self.require(8 * n)
        self.spend(STRING_MEMORY * n)
        data, read_length = self.data, _U64.unpack_from
        limit = min(self.size, self.pos + self.memory // 4)
        strings: list[str] = []
        end = self.pos
        for _ in range(n):
            start = end + 8
            length = read_length(data, end)[0] if start <= limit else 0
            end = start + length
            if end > limit:
                break
            if length > MAX_STRING:
                self.check_length(length)
            strings.append(data[start:end].decode("utf-8", "surrogateescape"))
        # Past the limit means past the end of the file or of the budget: one of these two raises then.
        self.require(end - self.pos)
        self.spend(4 * (end - self.pos))
        self.pos = end
        return strings
