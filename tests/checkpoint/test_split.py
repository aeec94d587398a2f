"""Split models: any part opens all, and parts that do not belong together are refused."""

import pytest

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError


@pytest.fixture
def split(gguf_writer, tmp_path):
    """Write a model of three parts with one tensor each; arguments change part `number` (from 0)."""
    g = gguf_writer

    def write(number=None, *, no=None, count=3, total=3, name=None, architecture=None):
        paths = []
        for i in range(3):
            changed = i == number
            keys = [
                g.key("split.no", g.U16, no if changed and no is not None else i),
                g.key("split.count", g.U16, count if changed else 3),
                g.key("split.tensors.count", g.I32, total if changed else 3),
            ]
            if i == 0:
                keys.append(g.key("general.architecture", g.STR, "llama"))
            if changed and architecture:
                keys.append(g.key("general.architecture", g.STR, architecture))
            tensors = [g.tensor(name if changed and name else f"blk.{i}.w", [8])]
            paths.append(tmp_path / f"m-{i + 1:05d}-of-00003.gguf")
            paths[-1].write_bytes(g.file(keys, tensors, bytes([i]) * 32))
        return paths

    return write


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("mapped", [True, False])
def test_any_part_opens_all(split, number, mapped):
    paths, reports = split(), []
    with open_checkpoint(paths[number], mmap=mapped, progress=lambda *r: reports.append(r)) as checkpoint:
        assert checkpoint.paths == tuple(paths)
        assert checkpoint.path == paths[0]
        assert checkpoint.metadata.architecture == "llama"
        assert checkpoint.nbytes == sum(path.stat().st_size for path in paths)
        for i, path in enumerate(paths):
            tensor = checkpoint.tensor(f"blk.{i}.w", (8,))
            assert tensor.data.tobytes() == bytes([i]) * 32
            assert tensor.path == path
        assert [done for done, _ in reports[-1:]] == ([] if mapped else [checkpoint.nbytes])


def test_part_through_a_relative_path(split, monkeypatch):
    paths = split()
    monkeypatch.chdir(paths[0].parent)
    with open_checkpoint(paths[2].name) as checkpoint:
        assert len(checkpoint.tensors) == 3


@pytest.mark.parametrize("missing", [0, 2])
def test_missing_part(split, missing):
    paths = split()
    paths[missing].unlink()
    with pytest.raises(GGUFError, match=f"^{paths[missing]} is missing; .* is one of 3 parts"):
        open_checkpoint(paths[1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"no": 0}, "00002-of-00003.gguf: split.no is 0, but must be 1"),
        ({"count": 4}, "00002-of-00003.gguf: split.count is 4, but must be 3"),
        ({"total": 7}, "split.tensors.count is 7, but the 3 parts have 3 tensors together"),
        ({"name": "blk.0.w"}, "the tensor 'blk.0.w' is also in m-00001-of-00003.gguf"),
        ({"architecture": "qwen3moe"}, "is 'qwen3moe', but in m-00001-of-00003.gguf it is 'llama'"),
    ],
)
def test_part_of_another_model(split, change, expected):
    paths = split(1, **change)
    with pytest.raises(GGUFError, match=expected):
        open_checkpoint(paths[0])


def test_number_beyond_the_count(split):
    paths = split(0, no=3)
    with pytest.raises(GGUFError, match=r"split.no is 3 .u16., but must be an integer from 0 to 2"):
        open_checkpoint(paths[0])


@pytest.mark.parametrize("name", ["renamed.gguf", "m-00001-of-00004.gguf", "m-00003-of-00003.gguf"])
def test_renamed_part(split, name):
    path = split()[1]
    path.with_name(name).unlink(missing_ok=True)
    with pytest.raises(GGUFError, match=r"part 2 of 3 .* does not end in -00002-of-00003.gguf"):
        open_checkpoint(path.rename(path.with_name(name)))


def test_damaged_part_is_named(split):
    paths = split()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with pytest.raises(GGUFError, match=f"^{paths[1]}: the tensor 'blk.1.w' takes .* it is incomplete"):
        open_checkpoint(paths[0])


def test_merged_model_is_one_file(gguf_writer, write):
    g = gguf_writer
    keys = [
        g.key("split.no", g.U16, 0),
        g.key("split.count", g.U16, 0),
        g.key("split.tensors.count", g.I32, 9),
    ]
    with open_checkpoint(write(g.model(keys, [("a", [8])]))) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_whole_file_named_like_a_part(gguf_writer, write):
    path = write(gguf_writer.model(tensors=[("a", [8])]), "m-00001-of-00001.gguf")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.paths == (path,)
