"""Open a GGUF file, or all parts of a split one: metadata and tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from gguf_moe.checkpoint.foreign import shown
from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.checkpoint.part import Part
from gguf_moe.checkpoint.split import open_parts
from gguf_moe.errors import BusyError, GGUFError
from gguf_moe.hub.cache import located
from gguf_moe_kernels.quants import GGMLType

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in total."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor: its type and shape, and its bytes where they lie. `data` keeps those bytes alive."""

    name: str
    qtype: GGMLType
    shape: tuple[int, ...]  # GGUF order, fastest dimension first
    data: np.ndarray  # u8 [nbytes], read-only
    path: Path  # the part it lies in
    offset: int  # bytes from the start of that part

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def address(self) -> int:
        """The address of the first byte, valid as long as `data` lives."""
        return self.data.__array_interface__["data"][0]

    @property
    def n_rows(self) -> int:
        """Rows of shape[0] elements."""
        return math.prod(self.shape[1:])


class Checkpoint:
    """An open model. Closing it drops the tensors; the bytes of a tensor still in use stay until it goes."""

    def __init__(self, parts: Sequence[Part], buffers: Sequence[np.ndarray]) -> None:
        """`buffers` has the bytes of each part: u8 [part.nbytes], read-only, from the start of a page on."""
        self.paths = tuple(part.path for part in parts)
        self.metadata: Metadata = parts[0].metadata
        self.nbytes = sum(part.nbytes for part in parts)
        self.closed = False
        self.buffers = tuple(buffers)
        self.tensors = {
            place.name: Tensor(
                name=place.name,
                qtype=place.qtype,
                shape=place.shape,
                data=buffer[place.offset : place.offset + place.nbytes],
                path=part.path,
                offset=place.offset,
            )
            for part, buffer in zip(parts, buffers, strict=True)
            for place in part.places
        }

    @property
    def path(self) -> Path:
        """The file, or its first part."""
        return self.paths[0]

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor of this name, which must have this shape.

        The shape is in GGUF order, and dimensions of 1 at its end do not count.

        Raises GGUFError when it is missing or of another shape, and BusyError after close().
        """
        if self.closed:
            raise BusyError(f"{self.path} was closed; open it again to use its tensors.")
        tensor = self.tensors.get(name)
        if tensor is None:
            raise GGUFError(
                f"{self.path}: the tensor {shown(name)} is missing; "
                "the file is incomplete or converted in a way not known here: download or convert it again."
            )
        if shape is not None and _without_ones(tensor.shape) != _without_ones(shape):
            raise GGUFError(
                f"{tensor.path}: the tensor {shown(name)} has the shape {list(tensor.shape)}, "
                f"but by the metadata it must be {list(shape)}; "
                "the file contradicts itself: download or convert it again."
            )
        return tensor

    def close(self) -> None:
        """Let go of the tensors. May be called twice.

        A map cannot be unmapped while an array points into it, so it goes with the last such array.
        """
        self.tensors = {}
        self.buffers = ()
        self.closed = True

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(
    path: str | os.PathLike[str], *, mmap: bool = True, progress: Progress | None = None
) -> Checkpoint:
    """Open a GGUF file; of a split model any part opens all. The hub's names are looked up in the cache.

    With `mmap` the tensors are views into a shared read-only map, and nothing is read yet. Truncating a
    mapped file while it is in use kills the process. Without `mmap` all parts are read into memory first,
    and `progress` is told.

    Raises GGUFError for a file that is damaged or no GGUF file, UnsupportedModelError for a version or a
    tensor type that is not known here, HubError for a name that the cache lacks, and OutOfMemoryError.
    """
    parts = open_parts(located(path))
    buffers = [part.mapped() for part in parts] if mmap else _read(parts, progress)
    return Checkpoint(parts, buffers)


def _read(parts: Sequence[Part], progress: Progress | None) -> list[np.ndarray]:
    total, done = sum(part.nbytes for part in parts), 0

    def report(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    return [part.read(report) for part in parts]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
