"""Files that are damaged, foreign or made to do harm: each ends in one clear sentence."""

import struct
import sys

import pytest

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError, UnsupportedModelError

EDGES = (2**63, 2**64 - 1, 2**32, 10**9)


def one_tensor(g, data=bytes(64), name="t", shape=(16,), keys=(), **fields):
    return g.file(keys, [g.tensor(name, shape, **fields)], data)


def alignment(g, type_id, value):
    return one_tensor(g, keys=[g.key("general.alignment", type_id, value)])


FOREIGN = {
    "empty": (lambda g: b"", "is empty; download"),
    "three bytes": (lambda g: b"GGU", "is not a GGUF file: it starts with b'GGU'"),
    "only a magic": (lambda g: b"GGUF", "ends inside its header"),
    "bad magic": (lambda g: g.file(magic=b"GGUG"), "is not a GGUF file: it starts with b'GGUG'"),
    "git-LFS pointer": (
        lambda g: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "is a git-LFS pointer.*git lfs pull",
    ),
    "web page": (lambda g: b"\n<!DOCTYPE html><title>404</title>", "is a web page"),
    "safetensors": (
        lambda g: struct.pack("<Q", 30) + b'{"t":{"dtype":"F32"}}' + bytes(99),
        "is a safetensors file",
    ),
    "zip": (lambda g: b"PK\x03\x04" + bytes(99), "is a zip archive"),
    "pickle": (lambda g: b"\x80\x02\x8a\x0al\xfc", "is a pickled PyTorch checkpoint"),
    "gzip": (lambda g: b"\x1f\x8b\x08" + bytes(99), "is compressed with gzip; unpack"),
    "zstd": (lambda g: b"\x28\xb5\x2f\xfd" + bytes(99), "is compressed with zstd; unpack"),
    "GGML": (lambda g: b"lmgg" + bytes(99), "is a GGML file, older than GGUF"),
    "GGMF": (lambda g: b"fmgg" + bytes(99), "is a GGMF file, older than GGUF"),
    "GGJT": (lambda g: b"tjgg" + bytes(99), "is a GGJT file, older than GGUF"),
    "zeros": (lambda g: bytes(4096), "starts with zeros; the download was cut off"),
    "version 0": (lambda g: g.file(version=0), "has the GGUF version 0"),
    "version 1": (lambda g: g.file(version=1), "of version 1"),
    "version 4": (lambda g: g.file(version=4), "of version 4, but the newest known here is 3; update"),
    "version 2^32-1": (lambda g: g.file(version=2**32 - 1), "of version 4294967295"),
    "big-endian 3": (lambda g: g.file(version=3 << 24), "is a big-endian GGUF file"),
    "big-endian magic": (lambda g: b"FUGG" + bytes(99), "is a big-endian GGUF file"),
}

HEADER = {
    **{
        f"{n} keys": (lambda g, n=n: g.file(n_keys=n), f"table of {n} keys takes {n * 14} bytes")
        for n in EDGES
    },
    **{f"{n} tensors": (lambda g, n=n: g.file(n_tensors=n), f"table of {n} tensors takes") for n in EDGES},
    "key of 0 bytes": (lambda g: g.file([g.key("", g.U8, 1)]), "name of key 1 of 1 has 0 bytes"),
    "key of 64 KiB": (
        lambda g: g.file([g.key("k" * 65536, g.U8, 1)]),
        "has 65536 bytes, but must have 1 to 65535",
    ),
    **{
        f"key of {n} bytes": (
            lambda g, n=n: g.file([g.text("k", n) + bytes(99)]),
            f"key 1 of 1 takes {n} bytes",
        )
        for n in EDGES
    },
    "key that is not UTF-8": (
        lambda g: g.file([g.key(b"\xffk", g.U8, 1)]),
        r"is b'\\xffk', which is not UTF-8",
    ),
    "duplicate key": (lambda g: g.file([g.key("k", g.U8, 1)] * 2), "the key 'k' occurs twice"),
    "value type 13": (lambda g: g.file([g.raw_key("k", 13, bytes(8))]), "the key 'k' has the value type 13"),
    "value type 2^32-1": (lambda g: g.file([g.raw_key("k", 2**32 - 1, bytes(8))]), "value type 4294967295"),
    "bool 7": (lambda g: g.file([g.raw_key("k", g.BOOL, b"\7")]), "'k' is a bool stored as 7"),
    "array of bools 7": (
        lambda g: g.file([g.raw_key("k", g.ARR, struct.pack("<IQ", g.BOOL, 2) + b"\1\7")]),
        "other than 0 and 1",
    ),
    "string of 2^63 bytes": (
        lambda g: g.file([g.raw_key("k", g.STR, g.text("v", 2**63))]),
        "the key 'k' takes 92",
    ),
    "array of arrays": (
        lambda g: g.file([g.raw_key("k", g.ARR, struct.pack("<IQ", g.ARR, 1) + bytes(99))]),
        "array of value type 9",
    ),
    "array of type 13": (
        lambda g: g.file([g.raw_key("k", g.ARR, struct.pack("<IQ", 13, 1))]),
        "value type 13",
    ),
    **{
        f"array of {n} {what}": (
            lambda g, n=n, type_id=type_id: g.file([g.array("k", type_id, [], n=n)]),
            f"'k' takes {n * size} bytes, but the file ends after",
        )
        for n in (2**60, 2**64 - 1)
        for what, type_id, size in (("u8", 0, 1), ("f64", 12, 8), ("str", 8, 8))
    },
    "strings past the end": (
        lambda g: g.file(
            [g.raw_key("k", g.ARR, struct.pack("<IQ", g.STR, 3) + g.text("v") + g.text("w", 2**64 - 1))]
        ),
        "the key 'k' takes 184",
    ),
    "a string length cut off": (
        lambda g: g.file(
            [g.raw_key("k", g.ARR, struct.pack("<IQ", g.STR, 2) + g.text("vvvvvvvv"))], alignment=1
        ),
        "the key 'k' takes 24 bytes, but the file ends after 16",
    ),
}

TENSORS = {
    **{
        f"alignment {n}": (
            lambda g, n=n: alignment(g, g.U32, n),
            f"general.alignment is {n} .u32., but must be a power of two from 8 to 4096",
        )
        for n in (0, 1, 3, 4, 48, 8192, 2**31)
    },
    "alignment -32": (lambda g: alignment(g, g.I32, -32), "general.alignment is -32 .i32."),
    "alignment as a string": (lambda g: alignment(g, g.STR, "32"), "'32' .str., but must be an integer"),
    "alignment as a float": (lambda g: alignment(g, g.F32, 32), "32.0 .f32., but must be an integer"),
    "name of 0 bytes": (lambda g: one_tensor(g, name=""), "name of tensor 1 of 1 has 0 bytes"),
    "name of 65 bytes": (lambda g: one_tensor(g, name="t" * 65), "has 65 bytes, but must have 1 to 64"),
    "name that is not UTF-8": (lambda g: one_tensor(g, name=b"\xfe"), "which is not UTF-8"),
    "duplicate name": (
        lambda g: g.file([], [g.tensor("t", [8], 0), g.tensor("t", [8], 32)], bytes(64)),
        "occurs twice",
    ),
    **{
        f"n_dims {n}": (lambda g, n=n: one_tensor(g, n_dims=n), f"has {n} dimensions")
        for n in (0, 5, 2**32 - 1)
    },
    "dimension 0": (
        lambda g: one_tensor(g, shape=(16, 0)),
        r"has the shape \[16, 0\], but no dimension may be 0",
    ),
    "dimension 2^64-1": (lambda g: one_tensor(g, shape=(2**64 - 1,)), "but the file has only"),
    "product of 2^64": (lambda g: one_tensor(g, shape=(2**32, 2**32)), "but the file has only"),
    "product of 2^256": (lambda g: one_tensor(g, shape=(2**62,) * 4), "but the file has only"),
    "row of half a block": (
        lambda g: one_tensor(g, shape=(16,), type_id=8),
        "has rows of 16 elements, but Q8_0 has blocks of 32",
    ),
    "offset 1": (
        lambda g: one_tensor(g, offset=1),
        "has the offset 1, which is no multiple of the alignment 32",
    ),
    "offset 2^64-32": (lambda g: one_tensor(g, offset=2**64 - 32), "but the file has only"),
    "offset 2^64-1": (lambda g: one_tensor(g, offset=2**64 - 1), "which is no multiple"),
    "one byte short": (
        lambda g: one_tensor(g, bytes(63)),
        "takes the bytes 64 to 128, but the file has only 127",
    ),
    "no data": (lambda g: one_tensor(g, b""), "it is incomplete: download it again"),
    "overlap": (
        lambda g: g.file([], [g.tensor("a", [16], 0), g.tensor("b", [8], 32)], bytes(64)),
        "the tensors 'a' and 'b' overlap",
    ),
    "one inside the other": (
        lambda g: g.file([], [g.tensor("b", [8], 32), g.tensor("a", [32], 0)], bytes(128)),
        "the tensors 'a' and 'b' overlap",
    ),
    "the same place": (
        lambda g: g.file([], [g.tensor("a", [8]), g.tensor("b", [8])], bytes(64)),
        "the tensors 'a' and 'b' overlap",
    ),
    "removed type": (
        lambda g: one_tensor(g, type_id=31),
        "'t' is stored as Q4_0_4_4, a type that llama.cpp removed; quantize the model again",
    ),
    "ik_llama.cpp's type": (
        lambda g: one_tensor(g, type_id=139),
        "is stored as IQ4_K, a type that only ik_llama.cpp",
    ),
    "another fork's type": (
        lambda g: one_tensor(g, type_id=4711),
        "the tensor type 4711, which no llama.cpp has",
    ),
    "unknown type": (lambda g: one_tensor(g, type_id=60), "the tensor type 60, which is not known here"),
    "terminal codes in a name": (
        lambda g: one_tensor(g, b"", name="\x1b[2J\u202e"),
        r"tensor '\\x1b\[2J\\u202e' takes",
    ),
}


ALL = FOREIGN | HEADER | TENSORS


@pytest.mark.parametrize("name", ALL)
def test_ends_in_one_sentence(gguf_writer, write, name):
    make, expected = ALL[name]
    path = write(make(gguf_writer))
    with pytest.raises((GGUFError, UnsupportedModelError), match=expected) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA")
def test_is_refused_without_assertions_too(gguf_writer, tmp_path, open_all):
    for i, (make, _) in enumerate(ALL.values()):
        (tmp_path / f"{i}.gguf").write_bytes(make(gguf_writer))
    assert open_all(tmp_path, flags=["-O"]) == {f"{i}.gguf": "refused" for i in range(len(ALL))}
