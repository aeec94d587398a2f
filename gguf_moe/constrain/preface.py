"""What a model may write before an answer that must fit a grammar: its thoughts."""

from __future__ import annotations

from collections.abc import Callable

from gguf_moe.text.reasoning import is_harmony, think_tags

NO_PREFACE = "start: @answer"
"""A start rule in llguidance's Lark; @answer is the grammar that the answer must fit."""

_GAP = "GAP: /\\n{1,2}/"


def preface_of(
    template: str, prompt: str, control_id: Callable[[str], int | None], *, is_call: bool = False
) -> str:
    """The start rule, with what may come before the answer to a prompt that a chat template made.

    control_id: the id of a control token by its text, or None. is_call: the answer is a call of a tool.
    """
    end = prompt.rstrip()
    if is_harmony(template):
        if end.endswith("<|message|>"):
            return NO_PREFACE
        return _HARMONY + (" @answer" if is_call else _HARMONY_FINAL)
    tags = think_tags(template)
    if tags is None or end.endswith(tags[1]):
        return NO_PREFACE
    opening, closing = tags
    thoughts = _until(closing, control_id)
    if end.endswith(opening):
        return f"start: thoughts GAP? @answer\n{thoughts}\n{_GAP}"
    return f"start: ({_mark(opening, control_id)} thoughts GAP?)? @answer\n{thoughts}\n{_GAP}"


_HARMONY = """\
thoughts[suffix="<|end|>"]: /(.|\\n)*/
start: ("<|channel|>analysis<|message|>" thoughts "<|start|>assistant")?"""
# The answer is in the channel `final`; its header may name the format. A call has a header of its own.
_HARMONY_FINAL = """ HEADER @answer
HEADER: /<\\|channel\\|>final( ?<\\|constrain\\|>json)?<\\|message\\|>/"""


def _mark(text: str, control_id: Callable[[str], int | None]) -> str:
    found = control_id(text)
    return f'"{text}"' if found is None else f"<[{found}]>"


def _until(closing: str, control_id: Callable[[str], int | None]) -> str:
    """A rule for any text up to a tag, which is a token of its own or text."""
    if control_id(closing) is None:
        return f'thoughts[suffix="{closing}"]: /(.|\\n)*/'
    return f"thoughts: /(.|\\n)*/ {_mark(closing, control_id)}"
