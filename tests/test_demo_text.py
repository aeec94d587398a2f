"""scripts/demo: what SmolLM2 is asked, and which of its sentences stay."""

from __future__ import annotations

import re

import pytest
from demo.choose import choose, words_of
from demo.prompts import Prompt, make_prompts

OUTLINE = [
    "Tom was a shy cat.",
    " One day he lost his red ball in the garden. He looked under every bush and behind every stone, "
    "but the ball was not there. He sat down on the grass and began to cry. "
    'Then his friend Lily came by and asked, "What is wrong, Tom?" Tom said, "',
    " They looked together for a long time. At last Lily found the red ball under an old box. "
    "It was dirty, but it was not broken. They washed it in the river and played until the sun went down.",
    "",
]
GOOD = [" He had a ball.", 'I cannot find my ball."', " Tom was happy."]
PROMPT = Prompt("Write a short story about a shy cat named Tom.", OUTLINE, ("Tom", "Lily"))
SIMPLE = frozenset(
    words_of(
        " ".join([*OUTLINE, *GOOD, "happy my cannot dog you she have like an umbrella piano in then too"])
    )
)


def chosen(*gaps: str, logp: float = -1.0) -> str | None:
    return choose(PROMPT, list(gaps), [logp] * len(gaps), SIMPLE)


def test_good_sentences_stay_in_their_gaps() -> None:
    text = chosen(*GOOD)
    assert text == "".join(part + gap for part, gap in zip(OUTLINE, [*GOOD, ""], strict=True))


@pytest.mark.parametrize(
    "bad",
    [
        " Peter had a ball.",  # nobody of that name is in the outline
        " She had a ball.",  # the hero is a he
        " He had a dog.",  # neither is there a dog
        " You had a ball.",  # nobody is spoken to
        " He had a ball",  # no end
        " He had a ball ball.",
        " He had a zeppelin.",  # a word that few texts have
    ],
)
def test_a_bad_sentence_is_left_out(bad: str) -> None:
    text = chosen(bad, *GOOD[1:])
    assert text is not None
    assert text.startswith(OUTLINE[0] + OUTLINE[1])


def test_what_smollm2_finds_unlikely_is_left_out() -> None:
    text = chosen(*GOOD, logp=-3.0)
    assert text is not None
    assert not any(gap in text for gap in GOOD)


def test_what_has_nothing_to_do_with_the_outline_is_left_out_but_for_the_first_sentence() -> None:
    text = chosen(" He had an umbrella.", GOOD[1], " Tom had a piano.")
    assert text is not None
    assert " He had an umbrella." in text
    assert " Tom had a piano." not in text


def test_what_was_said_belongs_to_the_topic() -> None:
    text = chosen(" He had an umbrella.", GOOD[1], " Tom had an umbrella.")
    assert text is not None
    assert text.endswith(" Tom had an umbrella.")


def test_a_gap_ends_with_its_first_bad_sentence() -> None:
    prompt = PROMPT._replace(parts=[OUTLINE[0], "", "", *OUTLINE[1:]])
    gaps = [GOOD[0], " Peter had a ball.", " The ball was red.", *GOOD[1:]]
    text = choose(prompt, gaps, [-1.0] * len(gaps), SIMPLE)
    assert text is not None
    assert text.startswith(OUTLINE[0] + GOOD[0] + OUTLINE[1])


def test_in_a_dialogue_speakers_say_i_and_you() -> None:
    parts = ["Tom: What do you have in the garden, Lily?\nLily:", "", "\nTom: I like it so much.\nLily:", ""]
    prompt = Prompt("Write a short dialogue between Tom and Lily.", parts, ("Tom", "Lily"))
    gaps = [" I have a dog in the garden.", " You cannot find my dog.", " Then you like my dog, too."]
    text = choose(prompt, gaps, [-1.0] * 3, SIMPLE)
    assert text is not None
    assert all(gap in text for gap in gaps)


def test_half_a_sentence_goes_with_its_bad_end() -> None:
    text = chosen(GOOD[0], "I am Peter", GOOD[2])
    assert text is not None
    assert 'What is wrong, Tom?" They looked' in text


def test_what_was_said_is_not_said_again() -> None:
    text = chosen(GOOD[0], GOOD[1], " They looked together for a long time.")
    assert text is not None
    assert text.count("They looked together") == 1


def test_prompts_are_whole_and_the_same_for_a_seed() -> None:
    prompts = make_prompts(500, 1)
    assert prompts == make_prompts(500, 1)
    for prompt in prompts:
        text = "".join(prompt.parts)
        assert not re.search(r"[{}|()_]|  |\b[Aa] [aeio]", text), text
        assert not re.search(r"[.!?] [a-z]", text), text
        assert prompt.names[0] in prompt.question


def test_an_opening_leads_to_plots_of_its_own() -> None:
    bakers = [p for p in make_prompts(3000, 1) if re.search(r"\bbaker named|the baker\b", p.question)]
    assert bakers
    assert all(re.search(r"bak|cake|bread", "".join(p.parts)) for p in bakers)
