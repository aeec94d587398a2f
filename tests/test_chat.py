"""Conversations: turns on one cache, and what they keep."""

from pathlib import Path

import pytest

import gguf_moe
from gguf_moe.text.reasoning import Kind

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture
def conversation(model):
    return gguf_moe.Conversation(model, "Be brief.")


def said(turn):
    return "".join(segment.text for segment in turn)


def test_a_turn_answers_and_is_kept(conversation):
    turn = conversation.ask("Hi", **GREEDY)
    text = said(turn)
    assert text == turn.result.text
    assert conversation.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": text},
    ]


def test_nothing_that_was_computed_is_computed_again(conversation):
    first = conversation.ask("Hi", **GREEDY)
    said(first)
    second = conversation.ask("And then?", **GREEDY)
    said(second)
    before = first.result.prompt_token_ids + first.result.token_ids
    # The last token of the answer was sampled, but nothing was computed from it yet.
    assert second.result.n_reused == len(before) - 1
    assert second.result.prompt_token_ids[: len(before)] == before
    assert conversation.n_tokens == len(second.result.prompt_token_ids) + len(second.result.token_ids)


def test_turns_are_what_the_template_makes_of_the_messages(conversation, model):
    said(conversation.ask("Hi", **GREEDY))
    said(conversation.ask("And then?", **GREEDY))
    prompt = model.chat_prompt(conversation.messages[:-1]).text
    assert model.detokenize(conversation._ids).startswith(prompt)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was_read(conversation):
    turn = conversation.ask("Hi", temperature=0)
    parts = iter(turn)
    begin = next(parts).text + next(parts).text
    turn.close()
    turn.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": begin}
    assert said(conversation.ask("Go on", **GREEDY))


def test_a_question_that_was_not_read_leaves_nothing(conversation):
    before = conversation.messages
    conversation.ask("Hi", **GREEDY).close()
    assert conversation.messages == before
    with pytest.raises(gguf_moe.ContextFullError):
        conversation.ask("x " * 2000)
    assert conversation.messages == before


def test_again_answers_the_last_question_anew(conversation):
    with pytest.raises(gguf_moe.OptionError, match="no message to answer again"):
        conversation.again()
    first = said(conversation.ask("Hi", **GREEDY))
    assert said(conversation.again(**GREEDY)) == first
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]


def test_reset_keeps_or_changes_the_system_prompt(conversation):
    said(conversation.ask("Hi", **GREEDY))
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    conversation.reset("Be kind.")
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]
    conversation.reset("")
    assert conversation.messages == []
    assert conversation.n_tokens == 0


def test_messages_can_be_replaced(conversation, model):
    said(conversation.ask("Hi", **GREEDY))
    other = gguf_moe.Conversation(model)
    other.replace(conversation.messages)
    assert said(other.ask("More", **GREEDY))
    assert len(other.messages) == 5
    for wrong in ({"role": "pirate", "content": "x"}, {"role": "user"}, "text"):
        with pytest.raises(gguf_moe.OptionError, match="message"):
            other.replace([wrong])


def test_thoughts_are_kept_apart(conversation, model, monkeypatch):
    class Every:
        """Calls the first piece a thought."""

        def __init__(self):
            self.kind = Kind.REASONING

        def push(self, text):
            from gguf_moe.text.reasoning import Segment

            kind, self.kind = self.kind, Kind.ANSWER
            return [Segment(kind, text)]

        def flush(self):
            return []

    monkeypatch.setattr("gguf_moe.prompts.splitter_for", lambda *_: Every())
    segments = list(conversation.ask("Hi", **GREEDY))
    message = conversation.messages[-1]
    assert message["reasoning_content"] == segments[0].text.strip()
    assert message["content"].strip() == "".join(s.text for s in segments[1:]).strip()
    answer = model.create_chat_completion([{"role": "user", "content": "Hi"}], **GREEDY)
    assert answer["choices"][0]["message"]["reasoning_content"]
    chunks = list(model.create_chat_completion([{"role": "user", "content": "Hi"}], stream=True, **GREEDY))
    assert "reasoning_content" in chunks[1]["choices"][0]["delta"]
