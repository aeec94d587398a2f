"""Tiny files of any architecture, with changes, and what is read from files."""

import model_file
import numpy as np
import pytest
import tiny_models
import tiny_table
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint


@pytest.fixture
def loaded():
    """loaded(path): the architecture, the numbers and the tensors of a file."""
    opened = []

    def load(path):
        opened.append(open_checkpoint(path))
        return read_model(opened[-1])

    yield load
    for checkpoint in opened:
        checkpoint.close()


@pytest.fixture
def tiny_file(tmp_path):
    """tiny_file("glm4moe", ...): the path of the tiny file of this name, with changes.

    keys: by name without the architecture; None leaves a key out. tensors: by name; another name, an F32
    array in its place or in addition, or None to leave it out.
    """

    def make(arch, keys=None, tensors=None):
        name, arch = arch, tiny_table.arch_of(arch)
        keys = {f"{arch}.{key}": value for key, value in (keys or {}).items()}
        reader = GGUFReader(tiny_models.write_tiny(name, tmp_path / "unchanged.gguf"))
        path = tmp_path / f"{arch}.gguf"
        writer = GGUFWriter(path, arch)
        model_file.copy_keys(reader, writer, without=keys)
        for key, value in keys.items():
            if value is not None:
                model_file.add_key(writer, key, value)
        changed = {tensor.name: model_file.stored(tensor) for tensor in reader.tensors}
        for name, change in (tensors or {}).items():
            tensor = changed.pop(name, None)
            if isinstance(change, str):
                changed[change] = tensor._replace(name=change)
            elif change is not None:
                changed[name] = model_file.Tensor(
                    name, change.shape, GGMLQuantizationType.F32, lambda data=change: np.float32(data)
                )
        model_file.write_tensors(writer, list(changed.values()))
        return path

    return make
