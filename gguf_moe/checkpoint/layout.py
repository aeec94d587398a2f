"""Where each tensor lies in its file, checked: types, shapes, alignment, bounds, overlaps."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gguf_moe.checkpoint.foreign import how_to_complete, shown
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.checkpoint.parser import Header, TensorInfo
from gguf_moe.errors import GGUFError, UnsupportedModelError
from gguf_moe_kernels.quants import FIRST_FOREIGN_TYPE, REMOVED_TYPES, GGMLType

logger = logging.getLogger(__name__)

MIN_ALIGNMENT, DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 8, 32, 4096

_TYPES = {int(qtype): qtype for qtype in GGMLType}

# Types of ik_llama.cpp that are seen in public files; ids from enum ggml_type in its ggml.h.
_FOREIGN_TYPES = {
    133: "Q6_0",
    134: "IQ1_BN",
    135: "IQ2_BN",
    137: "IQ2_K",
    138: "IQ3_K",
    139: "IQ4_K",
    140: "IQ5_K",
    141: "IQ6_K",
    144: "IQ4_KS",
    145: "IQ2_KS",
    146: "IQ4_KSS",
    152: "IQ5_KS",
    153: "IQ2_KT",
    154: "IQ3_KT",
    155: "IQ4_KT",
    156: "IQ3_KS",
    157: "IQ2_KL",
    158: "IQ1_KT",
}


class Place(NamedTuple):
    """A tensor of one file. `offset` and `nbytes` are known to lie within the file."""

    name: str
    qtype: GGMLType
    shape: tuple[int, ...]  # GGUF order, fastest dimension first
    offset: int  # bytes from the start of the file
    nbytes: int


def place_tensors(path: Path, header: Header, metadata: Metadata, file_size: int) -> list[Place]:
    """Check the tensor table against itself and the file. In the order of the table.

    Raises UnsupportedModelError for a tensor type that is not known here, and GGUFError for all else.
    """
    if not header.tensors:
        return []
    alignment = _alignment(metadata)
    data_start = _round_up(header.end, alignment)
    places = [_place(path, info, alignment, data_start, file_size) for info in header.tensors]
    _check_gaps(path, places, alignment, data_start, file_size)
    return places


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise metadata.wrong("general.alignment", f"a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}")
    return alignment


def _round_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _place(path: Path, info: TensorInfo, alignment: int, data_start: int, file_size: int) -> Place:
    qtype = _TYPES.get(info.type_id)
    if qtype is None:
        raise _unknown_type(path, info)
    if 0 in info.shape:
        raise _damaged(path, info, f"has the shape {list(info.shape)}, but no dimension may be 0")
    if info.shape[0] % qtype.block_size:
        raise _damaged(
            path,
            info,
            f"has rows of {info.shape[0]} elements, but {qtype.name} has blocks of {qtype.block_size}",
        )
    if info.offset % alignment:
        raise _damaged(
            path, info, f"has the offset {info.offset}, which is no multiple of the alignment {alignment}"
        )
    offset = data_start + info.offset
    nbytes = qtype.row_size(info.shape[0]) * math.prod(info.shape[1:])
    if offset + nbytes > file_size:
        raise GGUFError(
            f"{path}: the tensor {shown(info.name)} takes the bytes {offset} to {offset + nbytes}, "
            f"but the file has only {file_size}; {how_to_complete(path)}."
        )
    return Place(info.name, qtype, info.shape, offset, nbytes)


def _check_gaps(path: Path, places: Sequence[Place], alignment: int, data_start: int, file_size: int) -> None:
    """Refuse overlaps. Bytes that belong to no tensor do no harm here, but may hide something: warn."""
    unused = 0
    end, last = data_start, ""
    for place in sorted(places, key=lambda place: place.offset):
        if place.offset < end:
            raise GGUFError(
                f"{path}: the tensors {shown(last)} and {shown(place.name)} overlap; "
                "the file is damaged: download or convert it again."
            )
        unused += _unused(place.offset - end, alignment)
        end, last = place.offset + place.nbytes, place.name
    unused += _unused(file_size - end, alignment)
    if unused:
        logger.warning("%s: %d bytes of the file belong to no tensor", path, unused)


def _unused(gap: int, alignment: int) -> int:
    return gap if gap >= alignment else 0


def _unknown_type(path: Path, info: TensorInfo) -> UnsupportedModelError:
    requantize = (
        "quantize the model again with a current llama.cpp, for example to Q4_K_M, or download such a file"
    )
    if info.type_id in REMOVED_TYPES:
        what = f"{REMOVED_TYPES[info.type_id]}, a type that llama.cpp removed; {requantize}"
    elif info.type_id in _FOREIGN_TYPES:
        what = f"{_FOREIGN_TYPES[info.type_id]}, a type that only ik_llama.cpp has; {requantize}"
    elif info.type_id >= FIRST_FOREIGN_TYPE:
        what = f"the tensor type {info.type_id}, which no llama.cpp has (perhaps a fork does); {requantize}"
    else:
        what = (
            f"the tensor type {info.type_id}, which is not known here; "
            "the file is damaged, or newer than this gguf-moe: update gguf-moe or download another file"
        )
    return UnsupportedModelError(f"{path}: the tensor {shown(info.name)} is stored as {what}.")


def _damaged(path: Path, info: TensorInfo, problem: str) -> GGUFError:
    return GGUFError(
        f"{path}: the tensor {shown(info.name)} {problem}; the file is damaged: download or convert it again."
    )
