"""Lines that end between words."""

import pytest

from gguf_moe.cli.terminal import Screen, Wrapper, columns
from gguf_moe.text.reasoning import Kind, Segment


def wrapped(text, width, n=1):
    wrapper = Wrapper(width)
    return "".join(wrapper.push(text[i : i + n]) for i in range(0, len(text), n)) + wrapper.flush()


@pytest.mark.parametrize("n", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("one two three ", ["one two", "three"]),
        ("exactly8 or", ["exactly8", "or"]),
        ("a\n\n  b c", ["a", "", "  b c"]),
        ("a longestwordofall", ["a", "longestw", "ordofall"]),
        ("\u4f60\u597d\u4f60\u597d\u4f60", ["\u4f60\u597d\u4f60\u597d", "\u4f60"]),
    ],
)
def test_lines_end_between_words(text, lines, n):
    assert wrapped(text, 8, n).split("\n") == lines


def test_without_a_width_nothing_changes():
    text = "a very  long line \n that stays"
    assert wrapped(text, None) == text


def test_columns_are_those_of_a_terminal():
    assert columns("a\u4f60e\u0301") == 4


@pytest.fixture
def shown(monkeypatch, capsys):
    """What a terminal of 20 columns gets, or with terminal=False a pipe."""

    def show(*segments, terminal=True, reasoning=None):
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
        screen = Screen(reasoning)
        for kind, text in segments:
            screen.show(Segment(kind, text))
        screen.end()
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return show


R, A = Kind.REASONING, Kind.ANSWER


def test_thoughts_are_dim_and_stand_apart(shown):
    assert shown((R, "Let me "), (R, "think."), (A, "Yes")) == "\x1b[2mLet me think.\x1b[0m\n\nYes\n"


def test_without_colour_thoughts_have_a_title(shown, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown((R, "Well."), (A, "Yes")) == "[reasoning]\nWell.\n\nYes\n"


def test_a_pipe_gets_the_answer_alone_and_unchanged(shown):
    text = "a text of more than twenty columns\x07"
    assert shown((R, "Well."), (A, text), terminal=False) == text + "\n"
    assert "Well." in shown((R, "Well."), (A, text), terminal=False, reasoning=True)


def test_a_model_cannot_steer_the_terminal(shown):
    assert shown((A, "a\x1b[2Jb\x07\x9b")) == "a\ufffd[2Jb\ufffd\ufffd\n"
