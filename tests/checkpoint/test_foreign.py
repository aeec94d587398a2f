"""Paths that are no files, and pieces of files."""

import os

import pytest

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError


def test_special_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for path, expected in (
        (tmp_path, "is a directory; give the GGUF file"),
        (tmp_path / "fifo", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        (tmp_path / "loop", "cannot be opened"),
        (tmp_path / "dangling", "cannot be opened .No such file"),
        (tmp_path / "nothing", "cannot be opened .No such file"),
        ("nul\0", "cannot be opened .embedded null"),
    ):
        with pytest.raises(GGUFError, match=expected):
            open_checkpoint(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(gguf_writer, write):
    path = write(gguf_writer.model())
    path.chmod(0)
    with pytest.raises(GGUFError, match=r"cannot be opened .Permission denied"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["m.gguf-split-a", "m.gguf.part1of2", "m.gguf.part-aa", "m.gguf.001"])
def test_first_piece_of_a_cut_file(gguf_writer, write, name):
    path = write(gguf_writer.model(tensors=[("t", [64])])[:-32], name)
    with pytest.raises(GGUFError, match=r"join all pieces with cat m.gguf\?\* > m.gguf"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("m.gguf-split-b", r"cat m.gguf\?\* > m.gguf"),
        ("m-00002-of-00003.gguf", r"cat m-\*-of-00003.gguf > m.gguf"),
    ],
)
def test_later_piece_of_a_cut_file(write, name, command):
    with pytest.raises(GGUFError, match=f"join all pieces with {command}"):
        open_checkpoint(write(b"\x8f\x01\x77" * 99, name))


def test_cut_download_is_not_taken_for_a_piece(gguf_writer, write):
    path = write(gguf_writer.model(tensors=[("t", [64])])[:-32], "m.gguf.part")
    with pytest.raises(GGUFError, match="incomplete: download it again"):
        open_checkpoint(path)
