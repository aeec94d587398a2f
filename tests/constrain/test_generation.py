"""What a model writes under a constraint: what fits, however it is sampled, alone and beside others."""

import json
import re
from pathlib import Path

import pytest

import gguf_moe
from gguf_moe.constrain.matcher import Matcher
from gguf_moe.errors import ConstraintError, OptionError
from gguf_moe.scheduler import Job

FIXTURES = Path(__file__).parents[1] / "fixtures"
DEMO = Path(gguf_moe.__file__).parent / "models" / "demo.gguf"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["fox", "bee"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "likes"],
    "additionalProperties": False,
}
PATTERN = r"[A-Z][a-z]{2,6}( [a-z]{2,6}){2,3}\."
ASKED = [{"role": "user", "content": "Who is there?"}]


def assert_is_a_person(text):
    person = json.loads(text)
    assert list(person) == PERSON["required"]
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 12
    assert person["kind"] in ("fox", "bee")
    assert isinstance(person["age"], int)
    assert 0 <= person["age"] <= 150
    assert 1 <= len(person["likes"]) <= 3
    assert all(isinstance(like, bool) for like in person["likes"])


@pytest.fixture(scope="module")
def model(kernel_cache):
    path = FIXTURES / "fixture-spm.Q4_K_M.gguf"
    with gguf_moe.load(path, threads=2, n_ctx=256, cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture(scope="module")
def chat_model(kernel_cache):
    path = FIXTURES / "fixture-bpe.Q4_K_M.gguf"
    with gguf_moe.load(path, threads=2, parallel=3, n_ctx=256, cache_dir=kernel_cache) as model:
        yield model


@pytest.mark.parametrize(
    "sampling",
    [
        *({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed} for seed in range(6)),
        {"temperature": 0},
        {"seed": 1, "typical_p": 0.5, "top_n_sigma": 1.0, "xtc_probability": 1.0, "repeat_penalty": 1.3},
        {"seed": 1, "mirostat": 2},
        {"seed": 1, "dry_multiplier": 1.0, "dry_allowed_length": 0, "logit_bias": {50: 30.0, 60: -30.0}},
    ],
    ids=str,
)
def test_every_text_fits(model, sampling):
    generation = model.generate("Once upon a time", json_schema=PERSON, max_tokens=200, **sampling)
    text = "".join(piece.text for piece in generation)
    assert generation.result.finish_reason == "stop"
    assert_is_a_person(text)
    sentence = model.create_completion("Once upon a time", regex=PATTERN, max_tokens=60, **sampling)
    assert re.fullmatch(PATTERN, sentence["choices"][0]["text"])


def test_the_demo_model_fits_too(kernel_cache):
    with gguf_moe.load(DEMO, threads=2, n_ctx=256, cache_dir=kernel_cache) as model:
        reply = model.create_completion("A fox", json_schema=PERSON, temperature=1.0, seed=2, max_tokens=150)
    assert_is_a_person(reply["choices"][0]["text"])


def test_a_text_that_cannot_go_on_ends_at_once(model):
    generation = model.generate("Once", regex="abc", temperature=0)
    list(generation)
    assert generation.result.text == "abc"
    assert not set(generation.result.token_ids) & model.tokenizer.eog_ids
    assert generation.result.finish_reason == "stop"


def test_a_limit_ends_it_as_usual(model):
    reply = model.create_completion("Once", json_schema=PERSON, max_tokens=3, seed=1)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["text"].startswith("{")


def test_log_probabilities_are_the_models_own(model):
    free = list(model.generate("Once", max_tokens=1, temperature=0).result.prompt_token_ids)
    bound = model.continuation("Once", regex="[0-9]", n_logprobs=3, temperature=0)
    logits = model.logits(free)[-1]
    piece = bound.take(logits.copy(), [], False)[0]
    assert set(list(piece.logprobs)[1:]) == {int(i) for i in (-logits).argsort(kind="stable")[:3]}
    assert all(value > -1000 for value in piece.logprobs.values())


def test_it_stops_with_an_error_rather_than_write_what_does_not_fit(model, monkeypatch):
    generation = model.generate("Once", regex="a+", seed=1, max_tokens=9)
    monkeypatch.setattr(Matcher, "mask", lambda self, logits: None)
    with pytest.raises(ConstraintError, match="could not be kept to"):
        list(generation)
    assert generation.result.text == ""


def test_a_bias_can_leave_nothing(model):
    nothing = dict.fromkeys(range(model.hparams.n_vocab), float("-inf"))
    with pytest.raises(OptionError, match="forbids all tokens"):
        list(model.generate("Once", regex="a", logit_bias=nothing))


def test_an_error_comes_before_any_work(model):
    with pytest.raises(OptionError, match="regex cannot be used"):
        model.generate("Once", regex="[a")
    with pytest.raises(OptionError, match="must be text, json_object or json_schema"):
        model.create_completion("Once", response_format={"type": "xml"})


def test_chats(chat_model):
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    options = {"response_format": wanted, "max_tokens": 200, "seed": 3}
    whole = chat_model.create_chat_completion(ASKED, **options)["choices"][0]
    assert_is_a_person(whole["message"]["content"])
    chunks = chat_model.create_chat_completion(ASKED, stream=True, **options)
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == whole["message"]["content"]
    turn = gguf_moe.Conversation(chat_model).ask(
        "Who is there?", response_format=wanted, seed=3, max_tokens=200
    )
    assert "".join(segment.text for segment in turn) == said


def test_each_of_a_batch_writes_what_it_writes_alone(chat_model):
    wanted = [{"json_schema": PERSON, "max_tokens": 200}, {"regex": PATTERN}, {}]

    def continuations():
        return [
            chat_model.continuation("A fox", **({"max_tokens": 60, "seed": 5} | options))
            for options in wanted
        ]

    def run(scheduler, *some):
        ends = []
        scheduler.submit(*(Job(c, lambda piece: None, ends.append) for c in some))
        while scheduler.step():
            pass
        assert ends == [None] * len(some)
        return [c.result.text for c in some]

    with chat_model.scheduler(n_waiting=3) as scheduler:
        alone = [run(scheduler, one)[0] for one in continuations()]
        together = run(scheduler, *continuations())
    assert together == alone
    assert_is_a_person(together[0])
    assert re.fullmatch(PATTERN, together[1])
