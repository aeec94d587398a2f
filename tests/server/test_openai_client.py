"""OpenAI's own client talks to the server."""

import concurrent.futures
import contextlib
import json
import re

import openai
import pytest

import gguf_moe
from gguf_moe.server.app import Settings
from tests.server.conftest import FIXTURE, serve

QUESTIONS = [
    f"Tell me about {name}." for name in ("a fox", "the sea", "Milo", "a lamp", "a king", "rain", "a bee")
]


@pytest.fixture
def client(start_server):
    url, _ = start_server()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        yield client


def complete(client, prompt, **options):
    settings = {"model": "demo", "max_tokens": 16, "temperature": 0} | options
    return client.completions.create(prompt=prompt, **settings)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]


def test_a_completion_and_its_stream_say_the_same(client, demo_model):
    whole = complete(client, "Once upon a time")
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 16
    assert whole.usage.prompt_tokens == len(demo_model.tokenize("Once upon a time"))
    chunks = list(complete(client, "Once upon a time", stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_several_streams_at_once_write_what_each_writes_alone(client):
    def stream(question):
        chunks = complete(client, question, stream=True, max_tokens=24)
        return "".join(chunk.choices[0].text for chunk in chunks)

    alone = [stream(question) for question in QUESTIONS]
    with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as pool:
        assert list(pool.map(stream, QUESTIONS)) == alone
    assert len(set(alone)) > 1


def test_several_choices_prompts_and_seeds(client):
    both = complete(client, ["A fox", "The sea"], n=2, temperature=1.0, seed=3)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in both.choices}) == 4
    again = complete(client, "The sea", temperature=1.0, seed=4)
    assert again.choices[0].text == both.choices[3].text


def test_stop_and_token_ids_as_a_prompt(client, demo_model):
    text = complete(client, demo_model.tokenize("Once upon a time")).choices[0].text
    stop = text[len(text) // 2 :][:4]
    stopped = complete(client, "Once upon a time", stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_logprobs(client):
    logprobs = complete(client, "Once upon a time", max_tokens=3, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 3
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert 0 >= value == max(top.values())
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_what_is_wrong_is_said(client):
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        complete(client, "A fox", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="the context holds 256"):
        complete(client, "fox " * 400)
    with pytest.raises(openai.BadRequestError, match="json_schema cannot be used: Invalid type: tree"):
        complete(client, "A fox", extra_body={"json_schema": {"type": "tree"}}, stream=True)
    with pytest.raises(openai.BadRequestError, match="grammar and regex exclude each other"):
        complete(client, "A fox", extra_body={"grammar": 'root ::= "a"', "regex": "a"})
    with pytest.raises(openai.APIStatusError, match="makes no embeddings"):
        client.embeddings.create(model="demo", input="A fox")


@pytest.fixture(scope="module")
def chat_client(kernel_cache):
    with contextlib.ExitStack() as stack:
        options = {"threads": 2, "parallel": 3, "cache_dir": kernel_cache}
        model = stack.enter_context(gguf_moe.load(FIXTURE, **options))
        url, _ = stack.enter_context(serve(model, Settings(), 8))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)
        yield stack.enter_context(client)


def chat(client, content, **options):
    settings = {"model": "any", "max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **settings)


def test_chats_at_once_answer_as_each_does_alone(chat_client):
    def stream(question):
        deltas = [chunk.choices[0].delta for chunk in chat(chat_client, question, stream=True)]
        assert deltas[0].role == "assistant"
        return "".join(delta.content or "" for delta in deltas)

    questions = [*QUESTIONS, "Why?"]
    alone = [chat(chat_client, question).choices[0].message.content for question in questions]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(stream, questions)) == alone


def test_a_chat_takes_parts_tools_and_logprobs(chat_client):
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": " more."}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    reply = chat(chat_client, parts, tools=tools, logprobs=True, top_logprobs=3, n=2, max_tokens=4)
    assert (
        reply.choices[0].message.content
        == chat(chat_client, "Tell me more.", max_tokens=4).choices[0].message.content
    )
    assert len(reply.choices) == 2
    entries = reply.choices[1].logprobs.content
    assert len(entries) == 4
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    with pytest.raises(openai.BadRequestError, match="has a part that is not text"):
        chat(chat_client, [{"type": "image_url", "image_url": {"url": "x"}}])


def test_answers_fit_what_is_asked_for(chat_client):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["fox", "bee"]}, "age": {"type": "integer", "maximum": 99}},
        "required": ["kind", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    reply = chat(chat_client, "Who?", response_format=wanted, n=2, temperature=1, seed=2, max_tokens=99)
    for choice in reply.choices:
        animal = json.loads(choice.message.content)
        assert list(animal) == ["kind", "age"]
        assert animal["kind"] in ("fox", "bee")
        assert animal["age"] <= 99
        assert choice.finish_reason == "stop"
    rules = {"grammar": 'root ::= "yes" | "no"'}
    chunks = complete(chat_client, "Is it so?", extra_body=rules, stream=True, logprobs=3)
    assert "".join(chunk.choices[0].text for chunk in chunks) in ("yes", "no")


def test_constrained_and_free_chats_at_once_answer_as_each_does_alone(chat_client):
    wanted = [{"response_format": {"type": "json_object"}}, {"extra_body": {"regex": "[a-z]{5,9}"}}, {}]

    def answer(options):
        return chat(chat_client, "Who is there?", **options).choices[0].message.content

    alone = [answer(options) for options in wanted]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answer, wanted)) == alone
    assert alone[0].startswith("{")
    assert re.fullmatch("[a-z]{5,9}", alone[1])
