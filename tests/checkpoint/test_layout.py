"""Where tensors may lie."""

import pytest

from gguf_moe.checkpoint import open_checkpoint


def test_unused_bytes_are_reported(gguf_writer, write, caplog):
    g = gguf_writer
    tensors = [g.tensor("a", [8], 0), g.tensor("b", [8], 96)]
    open_checkpoint(write(g.file([], tensors, bytes(128 + 40))))
    assert "104 bytes of the file belong to no tensor" in caplog.text


def test_alignment_padding_is_not_reported(gguf_writer, write, caplog):
    g = gguf_writer
    open_checkpoint(write(g.model(tensors=[("a", [3]), ("b", [9]), ("c", [1])])))
    assert not caplog.records


@pytest.mark.parametrize("n", [8, 16, 64, 4096])
def test_other_alignments(gguf_writer, write, n):
    g = gguf_writer
    keys = [g.key("general.alignment", g.U32, n)]
    tensors = [g.tensor("a", [2], 0), g.tensor("b", [2], n)]
    data = b"a" * 8 + bytes(n - 8) + b"b" * 8
    with open_checkpoint(write(g.file(keys, tensors, data, alignment=n))) as checkpoint:
        assert checkpoint.tensor("b").data.tobytes() == b"b" * 8
