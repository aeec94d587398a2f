"""What a tokenizer promises, with tiny vocabularies, and round trips with real ones."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_moe.errors import OptionError
from gguf_moe.text.tokenizer import MAX_TEXT_LENGTH

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

MIXED = "Ünïcödé 你好, 😀👩‍👩‍👧 हिन्दी\n\tend"

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "gpt-2"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_round_trip(stored_tokenizer, name, text):
    tokenizer = stored_tokenizer(name)
    ids = tokenizer.encode(text, bos=False, special=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).lstrip() == text.encode().lstrip()
    if tokenizer.bos_id is not None:
        with_bos = tokenizer.encode(text, bos=True, special=False)
        assert with_bos == [tokenizer.bos_id, *ids]
        assert tokenizer.decode(with_bos, special=False) == text


@pytest.mark.parametrize("name", ["llama-spm", "qwen2"])
def test_a_stream_gives_the_same_text_wherever_it_is_cut(stored_tokenizer, name):
    tokenizer = stored_tokenizer(name)
    ids = tokenizer.encode(MIXED, bos=False)
    whole = b"".join(map(tokenizer.token_bytes, ids)).decode()
    for cut in range(len(ids) + 1):
        stream = tokenizer.stream()
        before = "".join(map(stream.push, ids[:cut]))
        assert "\ufffd" not in before
        assert whole.startswith(before)
        assert before + "".join(map(stream.push, ids[cut:])) + stream.flush() == whole


def test_a_stream_holds_back_half_a_character(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values())
    e_acute = tokenizer.encode("é")
    assert len(e_acute) == 2
    stream = tokenizer.stream()
    assert [stream.push(i) for i in (*e_acute, e_acute[0])] == ["", "é", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert tokenizer.decode([e_acute[1], *tokenizer.encode("ok")]) == "\ufffdok"


def test_a_stream_continues_a_text_so_it_keeps_its_first_space(tokenizer_of, spm_values):
    tokenizer = tokenizer_of(spm_values())
    ids = tokenizer.encode("ab", bos=False)
    assert tokenizer.stream().push(ids[0]) == " ab"
    assert tokenizer.decode(ids) == "ab"


def test_control_tokens_are_shown_only_on_demand(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("<|x|>", CONTROL), ("<tool>", USER_DEFINED), ("pad7", UNUSED)))
    control, user_defined, unused = range(tokenizer.n_vocab - 3, tokenizer.n_vocab)
    ids = tokenizer.encode("a<|x|><tool>b")
    assert ids[1:3] == [control, user_defined]
    assert tokenizer.decode(ids) == "a<|x|><tool>b"
    assert tokenizer.decode(ids, special=False) == "a<tool>b"
    assert tokenizer.stream().push(control) == ""
    assert tokenizer.stream(shown={control}).push(control) == "<|x|>"
    assert tokenizer.token_bytes(unused) == b""
    assert tokenizer.is_control(control)
    assert not tokenizer.is_control(user_defined)


def test_text_that_is_not_to_be_trusted_makes_no_control_token(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("<|x|>", CONTROL), ("<tool>", USER_DEFINED)))
    ids = tokenizer.encode("<|x|><tool>", special=False)
    assert ids[-1] == tokenizer.n_vocab - 1
    assert tokenizer.n_vocab - 2 not in ids
    assert tokenizer.decode(ids) == "<|x|><tool>"


def test_the_longest_special_token_is_found_first(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("<a", CONTROL), ("a>bcd", CONTROL), ("<a>", CONTROL)))
    n = tokenizer.n_vocab
    assert tokenizer.encode("<a>bcd") == [*tokenizer.encode("<"), n - 2]
    assert tokenizer.encode("<a><a") == [n - 1, n - 3]


def test_bos(tokenizer_of, bpe_values, spm_values, caplog):
    spm = tokenizer_of(spm_values())
    plain = spm.encode("ab", bos=False)
    assert spm.encode("ab") == [1, *plain]
    assert spm.encode("") == [1]
    assert not caplog.records
    assert spm.encode("<s>ab") == [1, *plain]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert spm.encode("<s><s>") == [1, 1]

    bpe = tokenizer_of(bpe_values(bos_token_id=3))
    assert bpe.encode("a", bos=True) == [3, *bpe.encode("a")]
    assert tokenizer_of(bpe_values(bos_token_id=3, add_bos_token=True)).add_bos
    assert tokenizer_of(bpe_values(bos_token_id=3, pre="llama-bpe")).add_bos
    assert not tokenizer_of(bpe_values(pre="llama-bpe")).add_bos
    assert not tokenizer_of(spm_values(add_bos_token=False)).add_bos
    with pytest.raises(OptionError, match="no BOS token"):
        tokenizer_of(bpe_values()).encode("a", bos=True)


def test_spm_puts_a_space_before_the_text_and_after_special_tokens(tokenizer_of, spm_values):
    tokenizer = tokenizer_of(spm_values())
    word = tokenizer.encode("ab", bos=False)
    assert tokenizer.decode(word) == "ab"
    assert tokenizer.encode("ab</s>ab", bos=False) == [*word, 2, *word]
    assert tokenizer.decode([1, *word, 2, *word]) == "<s>ab</s> ab"
    without = tokenizer_of(spm_values(add_space_prefix=False))
    assert without.encode(" ab", bos=False) == word
    assert without.decode(word) == " ab"


def test_a_user_defined_token_keeps_its_own_space(tokenizer_of, spm_values):
    tokenizer = tokenizer_of(spm_values(("  ", USER_DEFINED)))
    ids = tokenizer.encode("  ab", bos=False)
    assert ids[0] == tokenizer.n_vocab - 1
    assert tokenizer.decode(ids[:1]) == "  "


def test_phi3_special_tokens_take_the_whitespace_behind_them_along(tokenizer_of, spm_values):
    values = spm_values(("<|end|>", CONTROL))
    text = "a<|end|> \n b<s> b"
    plain = tokenizer_of(values)
    phi = tokenizer_of(values | {"general.name": "Phi-3.5-MoE-instruct"})
    assert plain.encode(text) != phi.encode(text)
    assert phi.encode(text) == plain.encode("a<|end|>b<s> b")


def test_words_that_are_tokens_are_not_merged_where_the_pre_tokenizer_says_so(tokenizer_of, bpe_values):
    extra = ("xyz", NORMAL)
    assert len(tokenizer_of(bpe_values(extra, pre="llama-bpe")).encode("xyz")) == 1
    assert len(tokenizer_of(bpe_values(extra, pre="gpt-2")).encode("xyz")) == 3


def test_gemma4_falls_back_to_bytes(tokenizer_of, metadata_of):
    tokens = ["<bos>", "<0xC3>", "<0xA9>", "\u2581", "a", "\u2581a", "\n", "\n\n"]
    tokenizer = tokenizer_of(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [CONTROL, BYTE, BYTE, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL],
            "tokenizer.ggml.merges": ["\u2581 a", "\n \n"],
            "tokenizer.ggml.bos_token_id": 0,
        }
    )
    ids = tokenizer.encode(" a\n\né")
    assert [tokens[i] for i in ids] == ["<bos>", "\u2581a", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, special=False) == " a\n\né"


def test_suppressed_ids(tokenizer_of, bpe_values):
    assert tokenizer_of(bpe_values(suppress_tokens=[5, 7, 5, -1, 99999])).suppressed_ids == {5, 7}
    assert tokenizer_of(bpe_values()).suppressed_ids == frozenset()


def test_special_ids_of_the_file(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(
        bpe_values(eos_token_id=2, eot_token_id=3, eom_token_id=4, unknown_token_id=5, padding_token_id=6)
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eot_id) == (None, 2, 3)
    assert (tokenizer.eom_id, tokenizer.unk_id, tokenizer.pad_id) == (4, 5, 6)
    assert tokenizer.eog_ids == {2, 3, 4}


@pytest.mark.parametrize("token_id", [-1, 10**9])
def test_unknown_ids(tokenizer_of, bpe_values, token_id):
    tokenizer = tokenizer_of(bpe_values())
    for attempt in (tokenizer.token_bytes, tokenizer.stream().push, lambda i: tokenizer.decode([i])):
        with pytest.raises(OptionError, match=f"no token {token_id}"):
            attempt(token_id)


def test_lone_surrogates(tokenizer_of, bpe_values):
    with pytest.raises(OptionError, match=r"character 2 is the lone surrogate '\\udcff'"):
        tokenizer_of(bpe_values()).encode("ab\udcff")


def test_a_text_of_ten_megabytes(tokenizer_of, bpe_values):
    with pytest.raises(OptionError, match=f"10000000 bytes of UTF-8, but at most {MAX_TEXT_LENGTH}"):
        tokenizer_of(bpe_values()).encode("a" * 10_000_000)


def test_threads_can_share_a_tokenizer(stored_tokenizer):
    tokenizer = stored_tokenizer("llama-spm")
    texts = [f"{MIXED} {i}" for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(tokenizer.encode, texts))
        decoded = list(pool.map(lambda i: tokenizer.decode(i, special=False), ids))
    assert decoded == texts
    assert ids == [tokenizer.encode(text) for text in texts]
