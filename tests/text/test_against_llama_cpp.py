"""The ids that llama.cpp gives, for its own test texts and for special tokens; see data/README.md."""

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
VOCABULARIES = sorted(path.stem for path in DATA.glob("*.out"))
SPECIAL = json.loads((DATA / "special-tokens.json").read_text(encoding="utf-8"))


def golden(name):
    texts = (DATA / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (DATA / f"{name}.out").read_text(encoding="utf-8").splitlines()
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_golden_ids(stored_tokenizer, name):
    tokenizer = stored_tokenizer(name)
    pairs = golden(name)
    assert len(pairs) >= 46
    assert [tokenizer.encode(text, bos=False, special=False) for text, _ in pairs] == [
        ids for _, ids in pairs
    ]
    assert [tokenizer.decode(ids) for _, ids in pairs] == [text for text, _ in pairs]


@pytest.mark.parametrize("row", SPECIAL, ids=lambda row: ascii(f"{row['vocabulary']} {row['text']}"))
def test_special_tokens_in_texts(stored_tokenizer, row):
    tokenizer = stored_tokenizer(row["vocabulary"])
    assert tokenizer.encode(row["text"], bos=False, special=True) == row["special"]
    assert tokenizer.encode(row["text"], bos=False, special=False) == row["plain"]


@pytest.mark.parametrize(
    ("name", "eog_ids", "bos_id", "add_bos"),
    [
        ("llama-spm", {2}, 1, True),
        ("llama-bpe", {128001, 128009}, 128000, True),
        ("qwen2", {128247, 151643, 151645}, 151643, False),
        ("gpt-2", {50256}, 50256, False),
    ],
)
def test_special_ids(stored_tokenizer, name, eog_ids, bos_id, add_bos):
    tokenizer = stored_tokenizer(name)
    assert tokenizer.eog_ids == eog_ids
    assert tokenizer.bos_id == bos_id
    assert tokenizer.add_bos is add_bos
    assert not tokenizer.add_eos
