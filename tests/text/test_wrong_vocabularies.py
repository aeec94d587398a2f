"""Files whose vocabulary is damaged, contradicts itself, or was made to do harm."""

import logging

import pytest

from gguf_moe.errors import GGUFError, UnsupportedModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def wrong(tokenizer_of, values, match, error=GGUFError):
    with pytest.raises(error, match=match) as raised:
        tokenizer_of(values)
    assert str(raised.value).startswith("model.gguf: ")
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", "none", "x" * 10_000])
def test_other_kinds_of_tokenizer(tokenizer_of, bpe_values, model):
    wrong(tokenizer_of, bpe_values(model=model), "only llama, gpt2 and gemma4", UnsupportedModelError)


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_a_missing_key(tokenizer_of, bpe_values, key):
    wrong(tokenizer_of, bpe_values(**{key: None}), f"tokenizer.ggml.{key} is missing")


def test_no_tokens(tokenizer_of, bpe_values, spm_values):
    wrong(tokenizer_of, bpe_values(tokens=[]), "at least one token")
    wrong(tokenizer_of, spm_values(tokens=[]), "at least one token")


@pytest.mark.parametrize("n", [1, 258, 260])
def test_token_types_of_another_length(tokenizer_of, bpe_values, n):
    wrong(tokenizer_of, bpe_values(token_type=[NORMAL] * n), "token_type.* array of 259 elements")


def test_scores_of_another_length(tokenizer_of, spm_values):
    wrong(tokenizer_of, spm_values(scores=[0.0] * 9), "scores.* array of 266 elements")


def test_scores_that_are_not_numbers(tokenizer_of, spm_values):
    wrong(tokenizer_of, spm_values(scores=[float("nan")] * 266), "scores.*finite numbers")


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "eom", "unknown"])
@pytest.mark.parametrize("token_id", [259, 2**31, -2])
def test_an_id_that_is_no_token(tokenizer_of, bpe_values, key, token_id):
    wrong(
        tokenizer_of, bpe_values(**{f"{key}_token_id": token_id}), f"{key}_token_id is {token_id}.*0 to 258"
    )


@pytest.mark.parametrize("token_id", [-1, 0xFFFF_FFFF])
def test_minus_one_means_none(tokenizer_of, bpe_values, spm_values, token_id):
    assert tokenizer_of(bpe_values(bos_token_id=token_id)).bos_id is None
    assert tokenizer_of(spm_values(bos_token_id=token_id)).bos_id is None


def test_an_id_that_nothing_depends_on_is_ignored(tokenizer_of, bpe_values, caplog):
    assert tokenizer_of(bpe_values(padding_token_id=259)).pad_id is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_add_bos_without_bos(tokenizer_of, bpe_values, spm_values):
    wrong(
        tokenizer_of, bpe_values(add_bos_token=True), "add_bos_token is true, but the file names no BOS token"
    )
    wrong(tokenizer_of, spm_values(add_bos_token=True, bos_token_id=-1), "names no BOS token")


@pytest.mark.parametrize("merge", ["h q\u2581", "q\u2581 h", "h z", "h", "", " h", "h ", "h e l"])
def test_a_merge_that_names_no_token(tokenizer_of, bpe_values, merge):
    wrong(
        tokenizer_of, bpe_values(merges=["h e", merge]), f"merge 1 of .*is {merge!r}, but must be two tokens"
    )


def test_of_two_equal_merges_the_first_counts(tokenizer_of, bpe_values):
    once = tokenizer_of(bpe_values(merges=["h e", "l l", "he ll"]))
    twice = tokenizer_of(bpe_values(merges=["h e", "l l", "he ll", "h e"]))
    assert once.encode("hello hell") == twice.encode("hello hell")


@pytest.mark.parametrize("values", ["bpe_values", "spm_values"])
def test_a_token_of_ten_megabytes(tokenizer_of, values, request):
    make = request.getfixturevalue(values)
    wrong(tokenizer_of, make(("a" * 10_000_000, NORMAL)), "has 10000000 characters, but at most")


def test_many_long_tokens(tokenizer_of, spm_values):
    rows = [("a" * 4000 + str(i), NORMAL) for i in range(2000)]
    wrong(tokenizer_of, spm_values(*rows), "characters together")


def test_equal_and_empty_tokens_and_bytes_that_are_not_utf8(tokenizer_of, bpe_values):
    extra = [("", UNUSED), ("dup", CONTROL), ("dup", CONTROL), ("\udcff\udcfe", NORMAL), ("", CONTROL)]
    tokenizer = tokenizer_of(bpe_values(*extra))
    empty, first, _, not_utf8, _ = range(259, 264)
    assert tokenizer.encode("dup") == [first]
    assert tokenizer.token_bytes(empty) == b""
    assert tokenizer.token_bytes(not_utf8) == b"\xff\xfe"
    assert tokenizer.decode([not_utf8]) == "\ufffd\ufffd"
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_types_that_do_not_exist(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("x1", 0), ("x2", 77), ("x3", -5)))
    assert tokenizer.decode([259, 260, 261]) == ""


def test_a_byte_token_with_another_name_is_text(tokenizer_of, spm_values):
    tokenizer = tokenizer_of(spm_values(("<0xZZ>", BYTE)))
    assert tokenizer.token_bytes(tokenizer.n_vocab - 1) == b"<0xZZ>"


def test_a_vocabulary_without_an_unknown_token(tokenizer_of, metadata_of):
    tokenizer = tokenizer_of({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["", "a", "\u2581"]})
    assert tokenizer.encode("a\u6f22a", bos=False) == [2, 1, 1]
