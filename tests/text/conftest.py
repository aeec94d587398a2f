"""Vocabularies to test with: llama.cpp's own, and tiny ones made here."""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.text.bpe import byte_level_alphabet
from gguf_moe.text.tokenizer import build_tokenizer

DATA = Path(__file__).parent / "data"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_TYPE_NAMES = {str: "str", bool: "bool", int: "u32", float: "f32"}


def make_metadata(values):
    """Metadata as the parser makes it: lists of numbers become arrays, keys with None are left out."""
    values = {key: value for key, value in values.items() if value is not None}
    type_names = {}
    for key, value in values.items():
        if isinstance(value, list):
            if not value or isinstance(value[0], str):
                type_names[key] = f"arr[str, {len(value)}]"
            else:
                values[key] = np.array(value, np.float32 if key.endswith("scores") else np.int32)
                type_names[key] = f"arr[{values[key].dtype}, {len(value)}]"
        else:
            type_names[key] = _TYPE_NAMES[type(value)]
    return Metadata(Path("model.gguf"), values, type_names)


def _cut_metadata(path):
    """A vocabulary that was cut down to some of its tokens; in the places of the others stand unused ones."""
    values = json.loads(path.read_text(encoding="utf-8"))
    n_vocab, ids = values.pop("n_vocab"), values.pop("id")
    for key, filler in (("tokens", "<unused {}>"), ("token_type", UNUSED), ("scores", -1e9)):
        if key in values:
            whole = [filler.format(i) if key == "tokens" else filler for i in range(n_vocab)]
            for i, value in zip(ids, values[key], strict=True):
                whole[i] = value
            values[key] = whole
    return make_metadata({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def _stored_metadata(name):
    path = DATA / f"{name}.cut.json"
    if path.exists():
        return _cut_metadata(path)
    values = json.loads(lzma.decompress((DATA / f"{name}.json.xz").read_bytes()))
    tokens = values["tokenizer.ggml.tokens"]
    merges = values.pop("tokenizer.ggml.merges", None)
    if merges is not None:
        made = [tokens[i] for i in itertools.accumulate(merges["step"])]
        values["tokenizer.ggml.merges"] = [
            f"{token[:cut]} {token[cut:]}" for token, cut in zip(made, merges["cut"], strict=True)
        ]
    return make_metadata(values)


_tokenizers = {}


@pytest.fixture(scope="session")
def stored_tokenizer():
    """The tokenizer of a vocabulary in the data folder, by name."""

    def get(name):
        if name not in _tokenizers:
            _tokenizers[name] = build_tokenizer(_stored_metadata(name))
        return _tokenizers[name]

    return get


@pytest.fixture(scope="session")
def metadata_of():
    return make_metadata


@pytest.fixture(scope="session")
def bpe_values():
    """Metadata of a byte-level vocabulary: all bytes, "he", "ll", "hell": 259 tokens; then `extra`."""

    def make(*extra, **changes):
        tokens = [*byte_level_alphabet(), "he", "ll", "hell"]
        types = [NORMAL] * len(tokens)
        for text, token_type in extra:
            tokens.append(text)
            types.append(token_type)
        values = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        }
        return values | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}

    return make


@pytest.fixture(scope="session")
def spm_values():
    """Metadata of a SentencePiece vocabulary: three special tokens, all bytes, some pieces, and `extra`."""

    def make(*extra, **changes):
        rows = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
        rows += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
        pieces = ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "\u2581\u2581"]
        rows += [(text, NORMAL, -float(i)) for i, text in enumerate(pieces)]
        rows += [(text, token_type, -1000.0) for text, token_type in extra]
        tokens, types, scores = map(list, zip(*rows, strict=True))
        values = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": scores,
        }
        return values | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}

    return make


@pytest.fixture(scope="session")
def tokenizer_of():
    """The tokenizer of metadata values."""

    def build(values, **options):
        return build_tokenizer(make_metadata(values), **options)

    return build
