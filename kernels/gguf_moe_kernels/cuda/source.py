"""From the files of this folder to one CUDA source: includes put in place, structs and constants from Python.

A file's kernels are declared by KERNEL(name, Struct, threads), see ptx.cuh. In a file that has one kernel
for each weight type, `#include "blocks/qtype.cuh"` means the file of the type that is compiled, and
TYPED(name) is name_q4_k and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gguf_moe_kernels import constants, structs
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.codebooks import CODEBOOKS, in_nibbles
from gguf_moe_kernels.cuda.warp_rows import warp_rows, warp_rows_by_expert
from gguf_moe_kernels.gating import Gating
from gguf_moe_kernels.quants import GGMLType

FOLDER = Path(__file__).parent
QTYPES = tuple(
    name
    for qtype in ACTIVATION_FORMAT
    if (FOLDER / "blocks" / f"{(name := qtype.name.lower())}.cuh").exists()
)
"""The weight types that have a file in blocks/, as they end a kernel's name."""

_INCLUDE = re.compile(r'^#include "([\w/]+\.cuh)"\n', re.MULTILINE)
_C_TYPES = {"<i8": "long long", "<f4": "float"}
_NO_FILES: dict[str, str] = {}


def split_name(name: str) -> tuple[str, str, str | None]:
    """A kernel's name, "file.function", as (file, function, weight type or None)."""
    file, function = name.split(".")
    endings = (qtype for qtype in QTYPES if function.endswith(f"_{qtype}"))
    qtype = max(endings, key=len, default=None)
    return file, function, qtype if _is_typed(file) else None


def module_source(file: str, qtype: str | None = None, replaced: Mapping[str, str] = _NO_FILES) -> str:
    """The whole source of {file}.cu for a weight type ("q4_k") or, for files that know no types, None.

    `replaced` has the text of files that shall stand in for those of this folder.
    """
    return preamble(qtype) + _expand(f"{file}.cu", qtype, replaced, set())


def files() -> list[str]:
    """Every .cu file's name, without the ending."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def modules() -> list[tuple[str, str | None]]:
    """Every (file, weight type) that module_source takes."""
    return [(file, qtype) for file in files() for qtype in (QTYPES if _is_typed(file) else (None,))]


def preamble(qtype: str | None) -> str:
    """The argument structs, the constants of the arithmetic, and the numbers of weight types and gatings."""
    lines = [
        _struct(name, value)
        for name, value in vars(structs).items()
        if isinstance(value, np.dtype) and not name.startswith("_")
    ]
    for name, value in vars(constants).items():
        if isinstance(value, np.float32):
            lines.append(_constant(name, value))
        elif isinstance(value, int):
            lines.append(f"constexpr int {name} = {value};")
        elif isinstance(value, tuple):
            lines += [_constant(f"{name}_{i}", element) for i, element in enumerate(value)]
    lines += [f"constexpr int GATING_{gating.name} = {int(gating)};" for gating in Gating]
    lines += [f"constexpr int GGML_TYPE_{t.name} = {int(t)};" for t in GGMLType if t in ACTIVATION_FORMAT]
    if qtype:
        lines += [
            f"#define TYPED(name) name##_{qtype}",
            f"constexpr int GGML_TYPE = GGML_TYPE_{qtype.upper()};",
            f"#define QTYPE_{qtype.upper()} 1",
            f"constexpr int WARP_ROWS = {warp_rows(qtype)};",
            f"constexpr int WARP_ROWS_BY_EXPERT = {warp_rows_by_expert(qtype)};",
        ]
        if (entries := CODEBOOKS.get(GGMLType[qtype.upper()])) is not None:
            lines.append(_codebook(entries))
    return "\n".join(lines) + "\n"


def _is_typed(file: str) -> bool:
    return '"blocks/qtype.cuh"' in (FOLDER / f"{file}.cu").read_text()


def _expand(path: str, qtype: str | None, replaced: Mapping[str, str], seen: set[str]) -> str:
    """The file's text with each include in its place, the first time it is asked for."""
    if path in seen:
        return ""
    seen.add(path)
    text = replaced[path] if path in replaced else (FOLDER / path).read_text()

    def included(match: re.Match[str]) -> str:
        return _expand(match[1].replace("blocks/qtype.", f"blocks/{qtype}."), qtype, replaced, seen)

    line = f'#line 1 "{path}"\n'
    return line + _INCLUDE.sub(included, text)


def _struct(name: str, dtype: np.dtype) -> str:
    assert dtype.fields is not None
    fields = " ".join(f"{_c_type(kind[0])} {field};" for field, kind in dtype.fields.items())
    return f"struct {_camel(name)} {{ {fields} }};"


def _c_type(dtype: np.dtype) -> str:
    """A number's type, or the name of the struct that a field is."""
    if dtype.fields is None:
        return _C_TYPES[dtype.str]
    known = ((name, value) for name, value in vars(structs).items() if isinstance(value, np.dtype))
    return next(_camel(name) for name, value in known if value == dtype)


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _constant(name: str, value: np.float32) -> str:
    return f"constexpr float {name} = {float(value).hex()}f;"


def _codebook(entries: np.ndarray) -> str:
    """The entries (int8 [n, width]) in words of four weights. Those of -1, 0, 1 as 0, 1, 2 in words of eight,
    the first four in the low nibbles of the bytes."""
    if entries.min() < 0:
        entries = in_nibbles(entries + 1)
    words = np.ascontiguousarray(entries).view("<u4").ravel()
    listed = ", ".join(f"{word:#x}u" for word in words.tolist())
    return f"__align__(16) static __device__ const unsigned CODEBOOK[{len(words)}] = {{{listed}}};"
