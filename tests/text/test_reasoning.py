"""Thoughts and answers are told apart, however the text is cut into pieces."""

import pytest

from gguf_moe.text.reasoning import Kind, splitter_for

THINK = "{{ '<think>' }}"
HARMONY = "{{ '<|channel|>' }}{{ '<|message|>' }}"
R, A, C = Kind.REASONING, Kind.ANSWER, Kind.COMMENTARY


def split(text, template=THINK, prompt="<|im_start|>assistant\n", n=1):
    """The parts of a text that comes n characters at a time, neighbours of one kind together."""
    splitter = splitter_for(template, prompt)
    pieces = [text[i : i + n] for i in range(0, len(text), n)]
    parts = []
    for segment in [*(s for piece in pieces for s in splitter.push(piece)), *splitter.flush()]:
        if parts and parts[-1][0] is segment.kind:
            parts[-1] = (segment.kind, parts[-1][1] + segment.text)
        else:
            parts.append((segment.kind, segment.text))
    return parts


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hello.", [(A, "Hello.")]),
        (" Hello.\n", [(A, " Hello.\n")]),
        ("<think>\nWell.\n</think>\n\nYes.\n", [(R, "Well.\n"), (A, "Yes.\n")]),
        ("<think>\n\n</think>\n\nYes.", [(A, "Yes.")]),
        ("<think>unfinished </thi", [(R, "unfinished </thi")]),
        ("Say <think> here", [(A, "Say <think> here")]),
        ("<thank you", [(A, "<thank you")]),
        ("\n", [(A, "\n")]),
        ("", []),
    ],
)
def test_thoughts_in_tags(text, parts, n):
    assert split(text, n=n) == parts


def test_the_opening_tag_may_be_in_the_prompt():
    prompt = "<|im_start|>assistant\n<think>\n"
    assert split("Well.\n</think>\n\nYes.", prompt=prompt) == [(R, "Well.\n"), (A, "Yes.")]


def test_other_tags_are_those_of_the_template():
    assert split("[THINK]Hm[/THINK]So", template="[THINK]") == [(R, "Hm"), (A, "So")]


@pytest.mark.parametrize("n", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "<|channel|>analysis<|message|>User greets.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Hi!",
            [(R, "User greets."), (A, "Hi!")],
        ),
        ("<|channel|>final<|message|>1 < 2 <| 3", [(A, "1 < 2 <| 3")]),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            [(C, "{}")],
        ),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", [(R, "a"), (A, "b")]),
        ("<|channel|>anal", [(A, "<|channel|>anal")]),
        ("<|channel|>final<|message|>b<|end|><|start|>assi", [(A, "b")]),
    ],
)
def test_channels_of_harmony(text, parts, n):
    assert split(text, template=HARMONY, prompt="<|start|>assistant", n=n) == parts
