"""A sound file, damaged at random: it opens, or ends in one of our errors, and in nothing else."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError, GGUFMoeError

EDGES = [
    0,
    1,
    2,
    5,
    8,
    9,
    13,
    31,
    32,
    33,
    255,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


@pytest.fixture(scope="module")
def sound(gguf_writer):
    g = gguf_writer
    keys = [
        g.key("general.alignment", g.U32, 32),
        g.array("tokens", g.STR, ["a", "bc"]),
        g.array("scores", g.F32, [1, 2]),
        g.key("flag", g.BOOL, True),
        g.key("split.count", g.U16, 1),
    ]
    return g.model(keys, [("a", [8]), ("b", [2, 4]), ("c", [2, 2, 2])])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations") / "model.gguf"


def test_cut_at_every_byte(sound, path):
    path.write_bytes(sound)
    open_checkpoint(path).close()
    for n in range(len(sound)):
        path.write_bytes(sound[:n])
        with pytest.raises(GGUFError, match=r"ends|empty|not a GGUF|has only"):
            open_checkpoint(path)


@st.composite
def damages(draw):
    """A function that damages a file in one place."""
    position = draw(st.integers(0, 2**16))
    kind = draw(st.sampled_from(["flip", "cut out", "splice", "set"]))
    value = draw(st.sampled_from(EDGES))
    width, code = draw(st.sampled_from([(1, "B"), (2, "H"), (4, "I"), (8, "Q")]))
    length = draw(st.integers(1, 64))

    def damage(data):
        at = position % (len(data) + 1)
        if kind == "flip":
            return data[:at] + bytes(byte ^ 1 << value % 8 for byte in data[at : at + 1]) + data[at + 1 :]
        if kind == "cut out":
            return data[:at] + data[at + length :]
        if kind == "splice":
            return data[:at] + data[value % (len(data) + 1) :][:length] + data[at:]
        return data[:at] + struct.pack("<" + code, value % 256**width) + data[at + width :]

    return damage


@settings(max_examples=800, deadline=None)
@given(st.lists(damages(), min_size=1, max_size=3))
def test_damaged_at_random(sound, path, steps):
    data = sound
    for damage in steps:
        data = damage(data)
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
    except GGUFMoeError:
        return
    for tensor in checkpoint.tensors.values():
        assert len(tensor.data.tobytes()) == tensor.qtype.row_size(tensor.shape[0]) * tensor.n_rows
    checkpoint.close()
