"""A demanded call fits what its model's family writes, and what the parser reads."""

import json
from pathlib import Path

import numpy as np
import pytest

import gguf_moe
from gguf_moe.constrain import Matchers, preface_of, tool_choice_grammar
from gguf_moe.errors import OptionError
from gguf_moe.prompts import check_tools
from gguf_moe.text.reasoning import Kind, splitter_for
from tests.text.test_tool_calls import FAMILIES

FIXTURES = Path(__file__).parents[1] / "fixtures"
CITY = {"$ref": "#/$defs/City"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "near": {"enum": ["the sea", 'a "lake"']},
        "unit": {"enum": ["C", "F"]},
        "city": CITY,
        "days": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["unit", "city"],
    "$defs": {"City": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 3}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
DEMANDED = [f for f in FAMILIES if f not in ("gemma", "llama with its tag")]


@pytest.fixture(scope="module")
def tokenizer():
    return gguf_moe.load_tokenizer(FIXTURES / "fixture-bpe.Q4_K_M.gguf")


@pytest.fixture(scope="module")
def matchers(tokenizer):
    return Matchers(tokenizer)


def no_control(text):
    return None


def write(matcher, tokenizer, rng):
    """A text that fits, of tokens chosen at random."""
    ids = []
    while not matcher.is_finished:
        logits = np.zeros(tokenizer.n_vocab, np.float32)
        matcher.mask(logits)
        fits = [int(i) for i in np.flatnonzero(logits == 0)]
        token = int(rng.choice(fits))
        if token in tokenizer.eog_ids:
            break
        ids.append(token)
        matcher.accept(token)
    return tokenizer.decode(ids)


@pytest.mark.parametrize("family", DEMANDED)
def test_what_fits_is_read_as_one_call(family, tokenizer, matchers, rng):
    template = FAMILIES[family][0]
    grammar = tool_choice_grammar(template, TOOLS, no_control)
    for _ in range(4):
        text = write(matchers.matcher(grammar), tokenizer, rng)
        splitter = splitter_for(template, "assistant\n", TOOLS)
        segments = [*splitter.push(text), *splitter.flush()]
        calls = [segment.call for segment in segments if segment.kind is Kind.CALL]
        assert len(calls) == 1, text
        arguments = json.loads(calls[0].arguments)
        if calls[0].name == "now":
            assert arguments == {}
        else:
            assert {"unit", "city"} <= arguments.keys() <= PARAMETERS["properties"].keys()
            assert arguments["unit"] in ("C", "F")
            assert all(isinstance(i, int) and i <= 9 for i in arguments["city"])


def fits(matcher, tokenizer, text):
    """Whether a text fits as a whole."""
    for token in tokenizer.encode(text, bos=False, special=False):
        logits = np.zeros(tokenizer.n_vocab, np.float32)
        matcher.mask(logits)
        if logits[token] != 0:
            return False
        matcher.accept(token)
    return matcher.is_finished


def test_texts_are_written_as_the_family_writes_them(tokenizer, matchers):
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"function": {"name": "f", "parameters": city}}]
    template = FAMILIES["qwen3-coder"][0]
    grammar = tool_choice_grammar(template, tools, no_control)
    begin, end = "<tool_call>\n<function=f>", "\n</function>\n</tool_call>"
    given = '\n<parameter=city>\nParis "x"\n</b>\n</parameter>'
    assert fits(matchers.matcher(grammar), tokenizer, begin + given + end)
    assert not fits(matchers.matcher(grammar), tokenizer, begin + end)
    assert not fits(matchers.matcher(grammar), tokenizer, "Hello")


def test_thoughts_may_come_before_a_call_of_gpt_oss(tokenizer, matchers):
    template = FAMILIES["gpt-oss"][0]
    preface = preface_of(template, "<|start|>assistant", no_control, is_call=True)
    grammar = tool_choice_grammar(template, TOOLS[1:], no_control)
    thoughts = "<|channel|>analysis<|message|>The time.<|end|><|start|>assistant"
    call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"
    assert fits(matchers.matcher(grammar, preface), tokenizer, thoughts + call)


def test_control_tokens_are_tokens(tokenizer, matchers):
    """A model that has the opening as a control token must write that token."""
    opening = min(
        i for i in range(tokenizer.n_vocab) if tokenizer.is_control(i) and i not in tokenizer.eog_ids
    )
    grammar = tool_choice_grammar(
        "[TOOL_CALLS]", TOOLS[1:], lambda text: opening if text == "[TOOL_CALLS]" else None
    )
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    matchers.matcher(grammar).mask(logits)
    assert list(np.flatnonzero(logits == 0)) == [opening]


@pytest.mark.parametrize("template", ["{{ messages }}", FAMILIES["gemma"][0]])
def test_models_of_which_no_call_can_be_demanded(template):
    with pytest.raises(OptionError, match="leave tool_choice at auto"):
        tool_choice_grammar(template, TOOLS, no_control)


def test_which_tools_are_told_and_demanded():
    now = TOOLS[1]
    named = {"type": "function", "function": {"name": "now"}}
    assert check_tools(None, None) == ([], [])
    assert check_tools(TOOLS, "auto") == (TOOLS, [])
    assert check_tools(TOOLS, "none") == ([], [])
    assert check_tools(TOOLS, "required") == (TOOLS, TOOLS)
    assert check_tools(TOOLS, named) == (TOOLS, [now])


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        (None, "required", "there are no tools"),
        ("weather", None, "tools must be a list"),
        ([5], None, "tool 0 has no function with a name"),
        ([{"function": {"name": 5}}], None, "tool 0 has no function with a name"),
        ([{"function": {"name": "f", "parameters": []}}, {}], None, "tool 1 has no function"),
        ([{"function": {"name": "f", "parameters": [5]}}], None, "must be a JSON schema"),
        (TOOLS, {"type": "function", "function": {"name": "rain"}}, "names one of the tools"),
        (TOOLS, "always", "must be none, auto, required"),
        (TOOLS, 5, "must be none, auto, required"),
    ],
)
def test_what_is_wrong_with_tools_is_said(tools, choice, message):
    with pytest.raises(OptionError, match=message):
        check_tools(tools, choice)
