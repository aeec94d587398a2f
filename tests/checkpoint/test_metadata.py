"""Typed reads: the right value, or an error with file, key, value, expectation and remedy."""

import math

import pytest

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import GGUFError


@pytest.fixture
def metadata(gguf_writer, write):
    g = gguf_writer
    keys = [
        g.key("llama.u8", g.U8, 7),
        g.key("llama.i64", g.I64, -7),
        g.key("llama.u64", g.U64, 2**64 - 1),
        g.key("llama.f32", g.F32, 0.5),
        g.key("llama.zero", g.F64, 0.0),
        g.key("llama.nan", g.F32, math.nan),
        g.key("llama.inf", g.F64, math.inf),
        g.key("llama.flag", g.BOOL, True),
        g.key("llama.text", g.STR, "8"),
        g.array("llama.heads", g.U32, [4, 0, 4]),
        g.array("llama.flags", g.BOOL, [True, False, True]),
        g.array("llama.floats", g.F32, [1, 2]),
        g.array("llama.nans", g.F32, [1, math.nan]),
        g.array("llama.texts", g.STR, ["a", "b"]),
        g.key("other.u8", g.U8, 9),
    ]
    return open_checkpoint(write(g.model(keys))).metadata


@pytest.fixture
def arch(metadata):
    return metadata.arch


def test_values_by_type(arch):
    assert arch.integer("u8") == 7
    assert arch.integer("i64", minimum=-7, maximum=-7) == -7
    assert arch.integer("u64") == 2**64 - 1
    assert arch.number("f32", positive=True) == 0.5
    assert arch.number("u8") == 7.0
    assert type(arch.number("u8")) is float
    assert arch.number("zero", minimum=0) == 0
    assert arch.boolean("flag") is True
    assert arch.string("text") == "8"
    assert arch.strings("texts") == ["a", "b"]
    assert arch.integers("heads").tolist() == [4, 0, 4]
    assert arch.booleans("flags").tolist() == [True, False, True]
    assert arch.numbers("floats").tolist() == [1, 2]
    assert arch.numbers("heads").tolist() == [4, 0, 4]


@pytest.mark.parametrize(
    "read", ["integer", "number", "boolean", "string", "strings", "integers", "numbers", "booleans"]
)
def test_missing(arch, read):
    assert getattr(arch, read)("absent", default=None) is None
    assert getattr(arch, read)("absent", 5) == 5
    with pytest.raises(
        GGUFError, match=r"model.gguf: the key llama.absent is missing; .*convert it again\.$"
    ):
        getattr(arch, read)("absent")


@pytest.mark.parametrize(
    ("read", "keys", "expected"),
    [
        ("integer", "f32 flag text heads texts nan", "an integer"),
        ("number", "flag text heads nan inf", "a finite number"),
        ("boolean", "u8 f32 text flags", "a bool"),
        ("string", "u8 f32 flag texts", "a string"),
        ("strings", "text heads u8", "an array of strings"),
        ("integers", "u8 floats flags texts", "an array of integers"),
        ("numbers", "f32 flags texts nans", "an array of finite numbers"),
        ("booleans", "flag heads", "an array of bools"),
    ],
)
def test_wrong_type(arch, read, keys, expected):
    for key in keys.split():
        with pytest.raises(GGUFError, match=rf"model.gguf: llama.{key} is .*, but must be {expected}; .*\.$"):
            getattr(arch, read)(key, default=None)


@pytest.mark.parametrize(
    ("read", "key", "limits", "expected"),
    [
        ("integer", "u8", {"minimum": 8}, r"llama.u8 is 7 \(u8\), but must be an integer of at least 8;"),
        (
            "integer",
            "i64",
            {"minimum": 1, "maximum": 9},
            r"is -7 \(i64\), but must be an integer from 1 to 9;",
        ),
        ("integer", "u64", {"maximum": 2**31}, "must be an integer of at most 2147483648;"),
        (
            "number",
            "zero",
            {"positive": True},
            r"is 0.0 \(f64\), but must be a finite number greater than 0;",
        ),
        ("number", "f32", {"minimum": 1.0}, "must be a finite number of at least 1.0;"),
        ("number", "f32", {"maximum": 0.25}, "must be a finite number of at most 0.25;"),
    ],
)
def test_out_of_range(arch, read, key, limits, expected):
    with pytest.raises(GGUFError, match=expected):
        getattr(arch, read)(key, **limits)


def test_per_layer(arch):
    assert arch.per_layer("u8", 3) == (7, 7, 7)
    assert arch.per_layer("heads", 3) == (4, 0, 4)
    assert [type(value) for value in arch.per_layer("heads", 3)] == [int] * 3
    assert arch.per_layer("flags", 3) == (1, 0, 1)
    assert arch.per_layer("absent", 3, default=None) is None
    for key, n_layer, limits, expected in (
        ("heads", 4, {}, r"llama.heads is an arr\[u32, 3\], but must be one integer, or an array of 4"),
        ("heads", 3, {"minimum": 1}, "llama.heads is 0 for layer 1, but must be an integer of at least 1"),
        ("u8", 3, {"maximum": 6}, "llama.u8 is 7 .u8., but must be an integer of at most 6"),
        ("texts", 2, {}, "llama.texts is an arr.*, but must be an integer"),
        ("floats", 2, {}, "llama.floats is an arr.*, but must be an array of integers"),
        ("f32", 2, {}, "llama.f32 is 0.5"),
        ("absent", 2, {}, "llama.absent is missing"),
    ):
        with pytest.raises(GGUFError, match=expected):
            arch.per_layer(key, n_layer, **limits)


def test_views(metadata, arch):
    assert metadata.architecture == arch.architecture == "llama"
    assert "u8" in arch
    assert "u8" not in metadata
    assert "llama.u8" in metadata
    assert set(metadata) == {f"llama.{key}" for key in arch} | {"general.architecture", "other.u8"}
    assert len(arch) == len(metadata) - 2
    assert arch["u8"] == metadata["llama.u8"] == 7
    assert arch.get("absent") is None
    assert arch.type_name("u8") == metadata.type_name("llama.u8") == "u8"
    assert arch.type_name("texts") == "arr[str, 2]"


def test_lists_are_copies(arch):
    arch.strings("texts").append("c")
    assert arch.strings("texts") == ["a", "b"]


def test_no_architecture(gguf_writer, write):
    metadata = open_checkpoint(write(gguf_writer.file())).metadata
    with pytest.raises(GGUFError, match=r"general\.architecture is missing"):
        _ = metadata.arch


def test_long_and_strange_values_are_shortened(gguf_writer, write):
    g = gguf_writer
    metadata = open_checkpoint(write(g.model([g.key("llama.x", g.STR, "\x1b[2J" + "é" * 10**6)]))).metadata
    with pytest.raises(GGUFError) as caught:
        metadata.arch.integer("x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
