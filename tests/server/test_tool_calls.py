"""OpenAI's own client calls tools: demanded ones, and those that an answer happens to have."""

import contextlib
import json

import openai
import pytest

import gguf_moe
from gguf_moe.server.app import Settings
from tests.server.conftest import serve
from tests.shared.tools import FIXTURE, TOOLS, with_tools

BELL = {"type": "function", "function": {"name": "bell"}}


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, parallel=2, cache_dir=kernel_cache) as model:
        yield with_tools(model)


@pytest.fixture(scope="module")
def client(model):
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(serve(model, Settings(), 8))
        yield stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))


def ask(client, messages="Light!", **options):
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    settings = {"model": "any", "max_tokens": 60, "temperature": 0, "tools": TOOLS} | options
    return client.chat.completions.create(messages=asked, **settings)


def test_a_demanded_call_comes_back(client):
    choice = ask(client, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name in ("lamp", "bell")
    (call,) = ask(client, tool_choice=BELL).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("bell", "{}")


def test_a_call_in_a_stream(client):
    lamp = {"type": "function", "function": {"name": "lamp"}}
    choices = [chunk.choices[0] for chunk in ask(client, tool_choice=lamp, stream=True)]
    deltas = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0]
    assert deltas[0].id
    assert deltas[0].function.name == "lamp"
    assert 0 <= json.loads(deltas[0].function.arguments)["level"] <= 99
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == ""
    assert choices[-1].finish_reason == "tool_calls"


def test_calls_that_nobody_demanded(client):
    written = (
        'So.\n<tool_call>{"name": "lamp", "arguments": {"level": 5}}</tool_call>\n<tool_call>{"name": "bell"}'
    )
    rules = {"regex": written.replace("{", r"\{").replace("}", r"\}").replace(".", r"\.")}
    choice = ask(client, extra_body=rules, max_tokens=200).choices[0]
    assert choice.message.content == "So."
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("lamp", '{"level": 5}'), ("bell", "{}")]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    plain = ask(client, extra_body=rules, max_tokens=200, tool_choice="none").choices[0]
    assert (plain.message.content, plain.message.tool_calls) == (written, None)
    assert plain.finish_reason == "stop"


def test_a_call_that_is_cut_off_is_text(client):
    choice = ask(client, tool_choice="required", max_tokens=3).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert "<tool_call>".startswith(choice.message.content[:3])


def test_earlier_calls_and_results_reach_the_template(client, model):
    call = ask(client, tool_choice=BELL).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "rung"}
    history = [{"role": "user", "content": "Ring!"}, call.model_dump(exclude_none=True), result]
    text = model.chat_prompt(history).text
    assert '<tool_call>\n{"name": "bell", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nrung" in text
    reply = ask(client, history, max_tokens=4)
    assert reply.usage.prompt_tokens == len(model.chat_prompt(history, tools=TOOLS).ids)


def test_what_is_wrong_is_said(client):
    with pytest.raises(openai.BadRequestError, match="tool 0 has no function with a name"):
        ask(client, tools=[{"type": "function"}])
    with pytest.raises(openai.BadRequestError, match="names one of the tools"):
        ask(client, tool_choice={"type": "function", "function": {"name": "horn"}})
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        ask(client, tool_choice="required", response_format={"type": "json_object"})
    bad = [{"type": "function", "function": {"name": "f", "parameters": {"type": "tree"}}}]
    with pytest.raises(openai.BadRequestError, match="tool_choice cannot be used"):
        ask(client, tools=bad, tool_choice="required")
