"""A conversation whose answers call tools."""

import json

import pytest

import gguf_moe
from tests.shared.tools import FIXTURE, TOOLS, with_tools

GREEDY = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, cache_dir=kernel_cache) as model:
        yield with_tools(model)


@pytest.fixture
def conversation(model):
    return gguf_moe.Conversation(model, "Be brief.", tools=TOOLS)


def test_a_call_waits_for_its_result(conversation):
    segments = list(conversation.ask("Light!", tool_choice="required", **GREEDY))
    (call,) = conversation.calls
    assert [segment.call.as_openai() for segment in segments if segment.call] == [call]
    assert json.loads(call["function"]["arguments"]).keys() <= {"level"}
    for wrong in ((), ("on", "on")):
        with pytest.raises(gguf_moe.OptionError, match="for 1 waiting calls"):
            conversation.reply(*wrong)
    turn = conversation.reply("on", **GREEDY)
    list(turn)
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[3]["tool_call_id"] == call["id"]
    assert turn.result.n_reused > 0


def test_a_reply_that_was_not_read_leaves_the_call(conversation):
    list(conversation.ask("Light!", tool_choice="required", **GREEDY))
    before = conversation.messages
    conversation.reply("on", **GREEDY).close()
    assert conversation.messages == before
    assert conversation.calls


def test_without_tools_none_can_be_demanded(model):
    with pytest.raises(gguf_moe.OptionError, match="there are no tools"):
        gguf_moe.Conversation(model).ask("Light!", tool_choice="required")
    with pytest.raises(gguf_moe.OptionError, match="no function with a name"):
        gguf_moe.Conversation(model, tools=[{"type": "function"}])
