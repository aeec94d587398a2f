"""How a chat looks: words are not cut at the end of a line, thoughts are dim. In a pipe it is plain text."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata

import click

from gguf_moe.text.reasoning import Kind, Segment

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CONTROL = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class Screen:
    """Writes answers to stdout. `reasoning`: thoughts too; None shows them on a terminal only."""

    def __init__(self, reasoning: bool | None = None):
        terminal = sys.stdout.isatty()
        self._terminal = terminal
        self._colour = terminal and not os.environ.get("NO_COLOR")
        self._wrapper = Wrapper(shutil.get_terminal_size().columns if terminal else None)
        self._reasoning = terminal if reasoning is None else reasoning
        self._kind: Kind | None = None

    def show(self, segment: Segment) -> None:
        """Write a part of an answer."""
        if segment.kind is not Kind.ANSWER and not self._reasoning:
            return
        if segment.kind is not self._kind:
            self._change(segment.kind)
        # What a model writes must not steer the terminal.
        text = segment.text.translate(_CONTROL) if self._terminal else segment.text
        self._write(self._wrapper.push(text))

    def end(self) -> None:
        """The answer is over, or was stopped."""
        self._finish_line()
        self._kind = None

    def _change(self, kind: Kind) -> None:
        if self._kind is not None:
            self._finish_line()
            self._write("\n")
        self._kind = kind
        if kind is Kind.ANSWER:
            return
        if self._colour:
            self._write(_DIM)
        else:
            self._write(f"[{kind.value}]\n")

    def _finish_line(self) -> None:
        self._write(self._wrapper.flush())
        if self._colour and self._kind not in (None, Kind.ANSWER):
            self._write(_PLAIN)
        if self._wrapper.column:
            self._write(self._wrapper.push("\n"))

    def _write(self, text: str) -> None:
        if text:
            click.echo(text, nl=False)


class Wrapper:
    """Puts line ends between words, so that no line is longer than `width` columns; None changes nothing.

    A word is held back until its end has come.
    """

    def __init__(self, width: int | None):
        self._width = width
        self._space = self._word = ""
        self.column = 0
        """Where the cursor is, words held back not counted."""

    def push(self, text: str) -> str:
        """The text that can be written now."""
        if self._width is None:
            if text:
                self.column = len(text) - text.rfind("\n") - 1
            return text
        out = ""
        for character in text:
            if character in " \n":
                out += self.flush()
                self._space += character if character == " " else ""
                if character == "\n":
                    self.column, self._space = 0, ""
                    out += "\n"
            else:
                if _columns(character) == 2 or columns(self._word) >= self._width:
                    out += self.flush()  # a line may end before and after a wide character
                self._word += character
                if _columns(character) == 2:
                    out += self.flush()
        return out

    def flush(self) -> str:
        """The word that is held back, on a new line if it does not fit."""
        word, space, self._word = self._word, self._space, ""
        if not word or self._width is None:
            return ""
        self._space = ""
        if self.column and self.column + len(space) + columns(word) > self._width:
            self.column = columns(word)
            return "\n" + word
        self.column += len(space) + columns(word)
        return space + word


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
