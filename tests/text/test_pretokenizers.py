"""The names of pre-tokenizers, and how some of them cut."""

import logging

import pytest
from tokenizers import Regex, pre_tokenizers

from gguf_moe.errors import OptionError, UnsupportedModelError
from gguf_moe.text.pretokenizers import PRE_TOKENIZERS


def cut(name, text):
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PRE_TOKENIZERS[name].patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_no_character_is_lost(name):
    text = (
        "I'LL pay 1234567\u20ac, for\tcamelCase  \u6f22\u5b57\u304b \ud55c\r\n\n ok?! e\u0301 \U0001f600/\n"
    )
    assert "".join(cut(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'll go  12345", ["I", "'ll", " go", " ", " 12345"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("llama-bpe", "I'LL go 12345", ["I", "'LL", " go", " ", "123", "45"]),
        ("llama-bpe", "a\n\n b!?\n", ["a", "\n\n", " b", "!?\n"]),
        ("qwen2", "I'LL 123", ["I", "'LL", " ", "1", "2", "3"]),
        ("qwen35", "e\u0301te\u0301 12", ["e\u0301te\u0301", " ", "1", "2"]),
        ("gpt-4o", "I'LL camelCase a/\n", ["I'LL", " camel", "Case", " a", "/\n"]),
        ("tekken", "it's camelCase 12", ["it", "'s", " camel", "Case", " ", "1", "2"]),
        ("kimi-k2", "ab\u6f22\u5b57\u304b 1234", ["ab", "\u6f22\u5b57", "\u304b", " ", "123", "4"]),
        ("deepseek-v3", "x=1234;\u6f22 go", ["x", "=", "123", "4", ";", "\u6f22", " go"]),
        ("cohere2moe", "1234567 12ab", ["1", "234", "567", " ", "12", "ab"]),
        ("afmoe", "n 12345", ["n", " ", "12", "345"]),
        ("superbpe", "go on 1234567", ["go on ", "1", "234", "567"]),
        ("bailingmoe", "it's 12\n\n", ["it", "'s", " ", "1", "2", "\n\n"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("default", "a, b1234", ["a", ",", " b", "123", "4"]),
    ],
)
def test_cuts(name, text, pieces):
    assert cut(name, text) == pieces


def test_an_unknown_name_lists_those_like_it(tokenizer_of, bpe_values):
    with pytest.raises(
        UnsupportedModelError, match=r"'qwen22'.*qwen2.*--pre-tokenizer NAME \(pre= in Python\)"
    ):
        tokenizer_of(bpe_values(pre="qwen22"))
    with pytest.raises(UnsupportedModelError, match=r"'\?\?'.*the known names are .*deepseek-v3.*tekken"):
        tokenizer_of(bpe_values(pre="??"))
    with pytest.raises(UnsupportedModelError, match="'whitespace'"):
        tokenizer_of(bpe_values(pre="whitespace"))


def test_the_caller_can_name_another(tokenizer_of, bpe_values, caplog):
    digits = tokenizer_of(bpe_values(pre="qwen22"), pre="qwen2")
    assert len(digits.encode("hehell")) == 2
    assert not caplog.records
    with pytest.raises(OptionError, match="no pre-tokenizer named 'qwen22'; the names most like it are"):
        tokenizer_of(bpe_values(), pre="qwen22")


def test_sentencepiece_has_none(tokenizer_of, spm_values):
    tokenizer_of(spm_values(pre="default"))
    with pytest.raises(OptionError, match="SentencePiece"):
        tokenizer_of(spm_values(), pre="qwen2")


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_a_file_without_a_name_works_with_a_warning(tokenizer_of, bpe_values, caplog, pre):
    tokenizer = tokenizer_of(bpe_values(pre=pre))
    assert tokenizer.decode(tokenizer.encode("hello, 12345")) == "hello, 12345"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "--pre-tokenizer" in caplog.text
