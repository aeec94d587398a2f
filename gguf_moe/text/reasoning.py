"""The parts of an answer: what a model thinks before it speaks, what it says, and which tools it calls.

Two formats are in use. Most models put their thoughts between <think> and </think>, and calls into what they
say. gpt-oss writes harmony: messages of several channels, each as <|channel|>NAME<|message|>TEXT<|end|>.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from gguf_moe.text.call_formats import find_format
from gguf_moe.text.overlap import overlap
from gguf_moe.text.tool_calls import CallParser, NotACall, ToolCall, read_call, schemas_of


class Kind(Enum):
    """What a part of an answer is."""

    REASONING = "reasoning"
    ANSWER = "answer"
    COMMENTARY = "commentary"
    """What harmony has beside the answer: words about calls, and calls where nobody told of tools."""
    CALL = "call"
    """A call of a tool, whole."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Some text of one kind. Neighbours may be of the same kind."""

    kind: Kind
    text: str
    call: ToolCall | None = None
    """Set if it is of the kind CALL; the text is then for people."""


class Splitter(Protocol):
    """Takes a model's text piece by piece, and gives its parts as soon as they are certain."""

    def push(self, text: str) -> list[Segment]:
        """The parts that became certain with this text."""

    def flush(self) -> list[Segment]:
        """What was held back, at the end."""


def splitter_for(template: str, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> Splitter:
    """A splitter for the answer to a prompt that a chat template made. tools: those it was told of."""
    if is_harmony(template):
        in_header = not prompt.rstrip().endswith("<|message|>")
        return HarmonySplitter(in_header=in_header, calls=bool(tools))
    opening, closing = think_tags(template) or _THINK_TAGS[0]
    splitter = ThinkSplitter(opening, closing, thinking=prompt.rstrip().endswith(opening))
    form = find_format(template) if tools else None
    return CallSplitter(splitter, CallParser(form, schemas_of(tools))) if form else splitter


def is_harmony(template: str) -> bool:
    """Whether a chat template writes gpt-oss's format."""
    return "<|channel|>" in template and "<|message|>" in template


def think_tags(template: str) -> tuple[str, str] | None:
    """The tags around the thoughts of a chat template's model; None if it names none."""
    return next((tags for tags in _THINK_TAGS if tags[0] in template or tags[1] in template), None)


_THINK_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


class ThinkSplitter:
    """Thoughts are between two tags, before the answer. `thinking`: the opening tag is in the prompt."""

    def __init__(self, opening: str, closing: str, *, thinking: bool = False):
        self._opening, self._closing = opening, closing
        self._state = Kind.REASONING if thinking else None
        self._held = ""
        self._at_start = True

    def push(self, text: str) -> list[Segment]:
        self._held += text
        if self._state is None and not self._begin():
            return []
        if self._state is Kind.ANSWER:
            return self._take(len(self._held))
        at = self._held.find(self._closing)
        if at < 0:
            return self._take(len(self._held) - overlap(self._held, self._closing))
        found = self._take(at)
        self._held = self._held.removeprefix(self._closing)
        self._state, self._at_start = Kind.ANSWER, True
        return found + self._take(len(self._held))

    def flush(self) -> list[Segment]:
        if self._state is None:
            self._state, self._at_start = Kind.ANSWER, False
        return self._take(len(self._held))

    def _begin(self) -> bool:
        """Whether it is certain if the text begins with thoughts."""
        text = self._held.lstrip()
        if text.startswith(self._opening):
            self._held = text.removeprefix(self._opening)
            self._state = Kind.REASONING
        elif text and not self._opening.startswith(text):
            self._state, self._at_start = Kind.ANSWER, False
        return self._state is not None

    def _take(self, n: int) -> list[Segment]:
        """The first n characters; blank lines at the start of a part are left out."""
        text, self._held = self._held[:n], self._held[n:]
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return []
        self._at_start = False
        assert self._state is not None
        return [Segment(self._state, text)]


class CallSplitter:
    """Takes the calls out of what another splitter gives as the answer."""

    def __init__(self, splitter: Splitter, parser: CallParser):
        self._splitter = splitter
        self._parser = parser

    def push(self, text: str) -> list[Segment]:
        return self._read(self._splitter.push(text))

    def flush(self) -> list[Segment]:
        return [*self._read(self._splitter.flush()), *map(_part, self._parser.flush())]

    def _read(self, segments: list[Segment]) -> list[Segment]:
        found: list[Segment] = []
        for segment in segments:
            is_answer = segment.kind is Kind.ANSWER
            found += map(_part, self._parser.push(segment.text)) if is_answer else [segment]
        return found


def _part(found: str | ToolCall) -> Segment:
    if isinstance(found, str):
        return Segment(Kind.ANSWER, found)
    return Segment(Kind.CALL, f"{found.name}({found.arguments})", found)


class HarmonySplitter:
    """gpt-oss's format. `in_header`: the prompt ends before a message's header, as it usually does.

    calls: messages to functions are calls.
    """

    _ENDS = ("<|end|>", "<|start|>", "<|channel|>", "<|call|>", "<|return|>")
    _BODY = "<|message|>"
    _RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")

    def __init__(self, *, in_header: bool = True, calls: bool = False):
        self._kind = None if in_header else Kind.ANSWER
        self._calls = calls
        self._called = ""
        self._held = ""
        self._any_message = not in_header

    def push(self, text: str) -> list[Segment]:
        self._held += text
        found: list[Segment] = []
        while True:
            if self._kind is None:
                header, marker, rest = self._held.partition(self._BODY)
                if not marker:
                    return found
                self._kind, self._held, self._any_message = _kind_of(header), rest, True
                recipient = self._RECIPIENT.search(header) if self._calls else None
                self._called = recipient[1] if recipient else ""
            at, end = min(((self._held.find(m), m) for m in self._ENDS if m in self._held), default=(-1, ""))
            if at < 0 and self._called:
                return found
            if at < 0:
                keep = max(overlap(self._held, marker) for marker in self._ENDS)
                return found + self._take(len(self._held) - keep)
            found += self._take(at)
            # <|channel|> begins a header and is part of it; the others only stand before one.
            self._held = self._held.removeprefix("" if end == "<|channel|>" else end)
            self._kind = None

    def flush(self) -> list[Segment]:
        if self._kind is None and not self._any_message:
            self._kind = Kind.ANSWER
        if self._kind is None:
            self._held = ""
        return self._take(len(self._held))

    def _take(self, n: int) -> list[Segment]:
        text, self._held = self._held[:n], self._held[n:]
        if self._kind and self._called:
            try:
                return [_part(read_call(self._called, text))]
            except NotACall:
                return [Segment(Kind.COMMENTARY, text)]
        return [Segment(self._kind, text)] if text and self._kind else []


def _kind_of(header: str) -> Kind:
    """The kind of a message, from what stands before its text: "assistant<|channel|>analysis"."""
    channel = header.rpartition("<|channel|>")[2].split()
    if not channel or channel[0].startswith("final"):
        return Kind.ANSWER
    return Kind.REASONING if channel[0].startswith("analysis") else Kind.COMMENTARY
