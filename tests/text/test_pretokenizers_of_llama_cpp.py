"""Each pre-tokenizer against llama.cpp's ids of hard texts (scripts/pretokenizer_fixtures.py)."""

import json
import lzma
from pathlib import Path

import pytest
from pretokenizer_table import DIFFERENCES

from gguf_moe.text.pretokenizers import PRE_TOKENIZERS

DATA = Path(__file__).parent / "data"


N_OTHER = {name: row.n_texts for row in DIFFERENCES for name in row.names.split()}


@pytest.fixture(scope="module")
def texts():
    return (DATA / "pretokenizers.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")


@pytest.fixture(scope="module")
def stored():
    return json.loads(lzma.decompress((DATA / "pretokenizers.json.xz").read_bytes()))


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_ids_are_llama_cpps_but_for_known_differences(tokenizer_of, texts, stored, name):
    result = next(result for result in stored["results"] if name in result["names"])
    values = stored["vocabularies"][result["vocabulary"]] | {"pre": name}
    tokenizer = tokenizer_of({f"tokenizer.ggml.{key}": value for key, value in values.items()})
    ours = [tokenizer.encode(text, bos=False, special=False) for text in texts]
    n_other = sum(a != b for a, b in zip(ours, result["ids"], strict=True))
    assert n_other == N_OTHER.get(name, 0)
    if PRE_TOKENIZERS[name].byte_level:  # the others cannot tell U+2581 from a space
        assert [tokenizer.decode(ids) for ids in ours] == texts


def test_the_texts_tell_pre_tokenizers_apart(stored):
    assert len(stored["results"]) >= 25
