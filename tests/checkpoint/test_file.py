"""Checkpoint and Tensor: views into the file, or into memory that the file was read into."""

from pathlib import Path

import numpy as np
import pytest

from gguf_moe.checkpoint import open_checkpoint, part
from gguf_moe.errors import BusyError, GGUFError, OutOfMemoryError
from gguf_moe_kernels.quants import GGMLType

MAPS = Path("/proc/self/maps")


@pytest.fixture
def model(gguf_writer, write):
    return write(gguf_writer.model(tensors=[("a", [8]), ("b", [4, 3, 2]), ("c", [8, 1])]))


@pytest.mark.parametrize("mapped", [True, False])
def test_tensor(model, mapped):
    with open_checkpoint(str(model), mmap=mapped) as checkpoint:
        tensor = checkpoint.tensor("b")
        assert (tensor.name, tensor.qtype, tensor.shape, tensor.n_rows) == ("b", GGMLType.F32, (4, 3, 2), 6)
        assert tensor.path == model
        assert tensor.nbytes == 96
        assert tensor.data.tobytes() == model.read_bytes()[tensor.offset :][:96]
        assert tensor.address == tensor.data.ctypes.data
        assert tensor.address % 32 == 0
        assert (tensor.data.dtype, tensor.data.shape) == (np.uint8, (96,))
        with pytest.raises(ValueError, match="read-only"):
            tensor.data[0] = 1


def test_checkpoint(model):
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.path == model
        assert checkpoint.paths == (model,)
        assert checkpoint.nbytes == model.stat().st_size
        assert list(checkpoint.tensors) == ["a", "b", "c"]


def test_shape_is_checked(model):
    with open_checkpoint(model) as checkpoint:
        assert checkpoint.tensor("b", shape=(4, 3, 2)) is checkpoint.tensors["b"]
        assert checkpoint.tensor("c", shape=(8,)) is checkpoint.tensors["c"]
        assert checkpoint.tensor("a", shape=(8, 1)) is checkpoint.tensors["a"]
        with pytest.raises(GGUFError, match=r"tensor 'b' has the shape \[4, 3, 2\], .* must be \[4, 2, 3\]"):
            checkpoint.tensor("b", shape=(4, 2, 3))
        with pytest.raises(GGUFError, match="the tensor 'd' is missing"):
            checkpoint.tensor("d", shape=(8,))


@pytest.mark.parametrize("mapped", [True, False])
def test_closing_twice_and_with_live_views(model, mapped):
    checkpoint = open_checkpoint(model, mmap=mapped)
    data = checkpoint.tensor("a").data
    expected = data.tobytes()
    checkpoint.close()
    checkpoint.close()
    assert data.tobytes() == expected
    assert checkpoint.closed
    with pytest.raises(BusyError, match="was closed"):
        checkpoint.tensor("a")


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_closing_unmaps(model):
    with open_checkpoint(model) as checkpoint:
        assert str(model) in MAPS.read_text()
    assert str(model) not in MAPS.read_text()
    assert checkpoint.path == model


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_map_is_shared(model):
    """Only a map that is shared and read-only can be registered with a GPU where it lies."""
    with open_checkpoint(model):
        (line,) = (line for line in MAPS.read_text().splitlines() if line.endswith(str(model)))
    assert line.split()[1] == "r--s"


def test_reading_is_independent_of_the_file(model, monkeypatch):
    monkeypatch.setattr(part, "_READ_CHUNK", 100)
    size, reports = model.stat().st_size, []
    with open_checkpoint(model, mmap=False, progress=lambda *report: reports.append(report)) as checkpoint:
        expected = model.read_bytes()[checkpoint.tensor("b").offset :][:96]
        model.write_bytes(b"")
        assert checkpoint.tensor("b").data.tobytes() == expected
        assert checkpoint.tensor("b").address % 4096 == checkpoint.tensor("b").offset % 4096
    assert reports == [(done, size) for done in (*range(100, size, 100), size)]


def test_shrinking_while_it_is_read(model, monkeypatch):
    monkeypatch.setattr(part, "_READ_CHUNK", 100)
    with pytest.raises(GGUFError, match="became shorter while it was read"):
        open_checkpoint(model, mmap=False, progress=lambda *_: model.write_bytes(b""))


def test_no_memory_to_read_into(model, monkeypatch):
    def empty(*_):
        raise MemoryError

    monkeypatch.setattr(part.np, "empty", empty)
    with pytest.raises(OutOfMemoryError, match=r"no memory to read its \d+ bytes into"):
        open_checkpoint(model, mmap=False)


def test_vocabulary_without_tensors(gguf_writer, write):
    g = gguf_writer
    keys = [g.array("tokenizer.ggml.tokens", g.STR, ["a"])]
    with open_checkpoint(write(g.model(keys))) as checkpoint:
        assert checkpoint.tensors == {}
        assert checkpoint.metadata.strings("tokenizer.ggml.tokens") == ["a"]
