"""Which tokens fit: with both kinds of vocabulary, whatever way a text is cut into tokens."""

import json
from pathlib import Path

import numpy as np
import pytest

import gguf_moe
from gguf_moe.constrain import Matchers, find_grammar, preface_of
from gguf_moe.errors import ConstraintError, OptionError

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
THINK = "{{ '<think>' }}"
HARMONY = "{{ '<|channel|>' }}{{ '<|message|>' }}"


@pytest.fixture(scope="module", params=["bpe", "spm"])
def tokenizer(request):
    return gguf_moe.load_tokenizer(FIXTURES / f"fixture-{request.param}.Q4_K_M.gguf")


@pytest.fixture(scope="module")
def matchers(tokenizer):
    return Matchers(tokenizer)


def fitting(matcher, n_vocab):
    """The tokens that a mask leaves."""
    logits = np.zeros(n_vocab, np.float32)
    matcher.mask(logits)
    return np.flatnonzero(logits == 0)


def read(matcher, tokenizer, text, rng):
    """How many bytes of a text fit, cut into tokens at random; then whether the text may end."""
    data, at = text.encode(), 0
    while at < len(data):
        fits = fitting(matcher, tokenizer.n_vocab)
        texts = {int(i): tokenizer.token_bytes(int(i)) for i in fits if i not in tokenizer.eog_ids}
        able = [i for i, token in texts.items() if token and data.startswith(token, at)]
        if not able:
            return at, False
        token = int(rng.choice(able))
        matcher.accept(token)
        at += len(texts[token])
    return at, matcher.is_finished or bool(tokenizer.eog_ids & set(fitting(matcher, tokenizer.n_vocab)))


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"regex": "(ab|cd)+e?"}, ["ab", "abcde"], ["abx", "a", "e"]),
        ({"regex": r"\d+/\w"}, ["12/x"], ["12x", "१/x"]),
        ({"json_schema": SCHEMA}, ['{"name": "Zoë €"}', '{"name":"","age":-7}'], ['{"age":1}', '{"name":1}']),
        (
            {"response_format": {"type": "json_object"}},
            ['{"a": [1, {"b": null}]}', "{}"],
            ["[1]", '{"a":  1}'],
        ),
        ({"grammar": 'root ::= "yes" | "no" [!?]{1,2}'}, ["yes", "no!?"], ["no", "yes!"]),
        ({"grammar": 'start: "x" y\ny: /[0-9]+/ | "(" y ")"'}, ["x12", "x((3))"], ["x(3", "y"]),
    ],
)
def test_what_fits_is_let_through_and_nothing_else(matchers, tokenizer, rng, options, good, bad):
    grammar = find_grammar(**options)
    for text in good:
        assert read(matchers.matcher(grammar), tokenizer, text, rng) == (len(text.encode()), True), text
    for text in bad:
        assert not read(matchers.matcher(grammar), tokenizer, text, rng)[1], text


def test_an_end_is_possible_only_where_the_text_may_end(matchers, tokenizer):
    matcher = matchers.matcher(find_grammar(regex="ab?"))
    ends = set(tokenizer.eog_ids)
    assert not ends & set(fitting(matcher, tokenizer.n_vocab))
    [*a] = [i for i in fitting(matcher, tokenizer.n_vocab) if tokenizer.token_bytes(int(i)) == b"a"]
    matcher.accept(int(a[0]))
    assert ends <= set(fitting(matcher, tokenizer.n_vocab))
    assert not matcher.is_finished


def test_control_tokens_are_no_text(matchers, tokenizer):
    fits = fitting(matchers.matcher(find_grammar(regex="(.|\n)+")), tokenizer.n_vocab)
    assert not any(tokenizer.is_control(int(i)) for i in fits)
    assert len(fits) > tokenizer.n_vocab // 2


def test_each_matcher_goes_its_own_way(matchers, tokenizer, rng):
    grammar = find_grammar(regex="a+")
    first, second = matchers.matcher(grammar), matchers.matcher(grammar)
    read(first, tokenizer, "aa", rng)
    with pytest.raises(ConstraintError, match="could not be kept to the schema or grammar"):
        first.accept(tokenizer.encode("7", bos=False)[-1])
    with pytest.raises(ConstraintError):  # and it stays so
        first.mask(np.zeros(tokenizer.n_vocab, np.float32))
    assert not first.is_finished
    assert read(second, tokenizer, "a", rng) == (1, True)


def test_logits_beyond_the_vocabulary_never_fit(matchers, tokenizer):
    logits = np.zeros(tokenizer.n_vocab + 5, np.float32)
    matchers.matcher(find_grammar(regex="a")).mask(logits)
    assert (logits[-5:] == -np.inf).all()


def test_no_token_fits_if_the_model_itself_rules_them_out(matchers, tokenizer):
    logits = np.full(tokenizer.n_vocab, -np.inf, np.float32)
    with pytest.raises(ConstraintError, match="no token of the model fits"):
        matchers.matcher(find_grammar(regex="a")).mask(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "[a"}, "regex cannot be used: .*unclosed character class"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": "start: foo"}, "grammar cannot be used: .*foo"),
        ({"grammar": "root ::= foo"}, "neither Lark nor GBNF: Rule 'foo' not found"),
        ({"grammar": "root ::= " + "(" * 9000}, "neither Lark nor GBNF"),
        ({"json_schema": {"type": "strin"}}, "json_schema cannot be used: Invalid type: strin"),
        ({"json_schema": {"$ref": "http://example.org/x"}}, "json_schema cannot be used"),
        ({"json_schema": {"$ref": "#"}}, "json_schema cannot be used: no text fits"),
        (
            {
                "json_schema": {
                    "allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in "abcd"]} for i in range(9)]
                }
            },
            "json_schema cannot be used: schema too large",
        ),
    ],
)
def test_a_wrong_grammar_is_said_in_one_sentence(matchers, options, message):
    with pytest.raises(OptionError, match=message) as error:
        matchers.matcher(find_grammar(**options))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("template", "prompt", "text"),
    [
        (THINK, "assistant\n", '<think>\nWell {"a"}.\n</think>\n\n{"name":"x"}'),
        (THINK, "assistant\n", '{"name":"x"}'),
        (THINK, "assistant\n<think>\n", 'Well.</think>{"name":"x"}'),
        (THINK, "assistant\n<think>\n\n</think>\n\n", '{"name":"x"}'),
        ("", "assistant\n", '{"name":"x"}'),
        (HARMONY, "<|start|>assistant", '<|channel|>final<|message|>{"name":"x"}'),
        (
            HARMONY,
            "<|start|>assistant",
            "<|channel|>analysis<|message|>A name.<|end|>"
            '<|start|>assistant<|channel|>final <|constrain|>json<|message|>{"name":"x"}',
        ),
    ],
)
def test_thoughts_may_come_before_the_answer(matchers, tokenizer, rng, template, prompt, text):
    preface = preface_of(template, prompt, lambda text: None)
    matcher = matchers.matcher(find_grammar(json_schema=SCHEMA), preface)
    assert read(matcher, tokenizer, text, rng) == (len(text), True)


def test_a_tag_may_be_a_control_token(matchers, tokenizer, rng):
    end = min(i for i in range(tokenizer.n_vocab) if tokenizer.is_control(i) and i not in tokenizer.eog_ids)
    preface = preface_of("[THINK] [/THINK]", "[THINK]", lambda text: end if text == "[/THINK]" else None)
    matcher = matchers.matcher(find_grammar(json_schema=SCHEMA), preface)
    read(matcher, tokenizer, "Well.", rng)
    assert end in fitting(matcher, tokenizer.n_vocab)
    matcher.accept(end)
    text = json.dumps({"name": "x"})
    assert read(matcher, tokenizer, text, rng) == (len(text), True)
