"""Files whose lengths are believable, because the file is that long, and still far too large."""

import os
import struct
import sys

import pytest


def sparse(head, size):
    """A file that starts with `head` and goes on with zeros up to `size`."""

    def write(path):
        path.write_bytes(head)
        os.truncate(path, size)

    return write


# Big on disk (most of it a hole), so that the lengths in them are believable.
GREEDY = {
    "strings that are all empty": lambda g: sparse(g.file([g.array("k", g.STR, [], n=10**9)]), 10**10),
    "as many strings as are allowed": lambda g: sparse(g.file([g.array("k", g.STR, [], n=2_500_000)]), 10**8),
    "a string of 40 MB": lambda g: sparse(g.file([g.raw_key("k", g.STR, g.text("", 40_000_000))]), 10**8),
    "wide strings": lambda g: sparse(
        g.file([g.array("k", g.STR, [b"\xf0\x9f\x98\x80" + bytes(4_000_000)] * 10)]), 10**8
    ),
    "too many wide strings": lambda g: sparse(
        g.file([g.array("k", g.STR, [b"\xf0\x9f\x98\x80" + bytes(4_000_000)] * 12)]), 10**8
    ),
    "a string of 1 GB": lambda g: sparse(g.file([g.raw_key("k", g.STR, g.text("", 10**9))]), 10**10),
    "strings of 64 MB": lambda g: sparse(
        g.file([g.raw_key("k", g.ARR, struct.pack("<IQQ", g.STR, 9, 64_000_000))]), 10**10
    ),
    "an array of 5 GB": lambda g: sparse(g.file([g.array("k", g.F64, [], n=625_000_000)]), 10**10),
    "an array of 150 MB": lambda g: sparse(g.file([g.array("k", g.U8, [], n=150_000_000)]), 10**9),
    "arrays of 191 MB together": lambda g: sparse(
        g.file([g.array("a", g.U8, bytes(10**6)), g.array("b", g.U8, [], n=190_000_000)]), 10**9
    ),
    "10^7 keys": lambda g: sparse(g.file(n_keys=10**7), 10**9),
    "10^7 tensors": lambda g: sparse(g.file(n_tensors=10**7), 10**9),
    "80,000 keys": lambda g: sparse(g.file([g.key(f"k{i}", g.U8, 1) for i in range(80_000)]), 10**8),
    "60,000 tensors": lambda g: sparse(
        g.file([], [g.tensor(f"t{i}", [8], 32 * i) for i in range(60_000)]), 10**8
    ),
    "zeros": lambda g: sparse(b"", 10**11),
}

SOUND = {
    "as many strings as are allowed",
    "wide strings",
    "an array of 150 MB",
    "80,000 keys",
    "60,000 tensors",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA")
def test_ends_soon_and_in_little_memory(gguf_writer, tmp_path, open_all):
    for name, make in GREEDY.items():
        make(gguf_writer)(tmp_path / name)
    assert open_all(tmp_path) == {name: "opened" if name in SOUND else "refused" for name in GREEDY}
