"""gguf-moe chat: talk with a model, turn by turn."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.cli.common import (
    DEMO_MODEL,
    ProgressLine,
    decode_utf8,
    load,
    model_or_demo_option,
    read_file,
    runtime_options,
)
from gguf_moe.cli.constraint import constraint_options
from gguf_moe.cli.sampling import sampling_options
from gguf_moe.cli.summary import about, summary
from gguf_moe.cli.terminal import Screen
from gguf_moe.cli.usage import slots_line, usage_line
from gguf_moe.errors import GGUFMoeError, OptionError
from gguf_moe.files import written_whole

if TYPE_CHECKING:
    from gguf_moe.chat import Conversation, Turn
    from gguf_moe.generate import Result
    from gguf_moe.sample import Sampling

_QUOTES = '"""'

HELP = """\
/reset          begin anew; the system prompt stays
/system TEXT    begin anew with another system prompt
/again          another answer to your last message
/save FILE      keep the conversation, as JSON
/load FILE      go on with a conversation that was kept
/stats          how full the context is, and how fast the last answer was
/exit           end (also Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on; \"\"\" begins and ends several lines."""


@click.command()
@model_or_demo_option
@click.option("-sys", "--system-prompt", "system", metavar="TEXT", help="What the model is told at first.")
@click.option("-n", "--n-predict", "max_tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be repeated.")
@click.option(
    "--reasoning/--no-reasoning", default=None, help="Show what the model thinks.  [default: on a terminal]"
)
@click.option(
    "--chat-template-kwargs",
    "template_options",
    metavar="JSON",
    help="""Variables of the chat template, as '{"enable_thinking": false}'.""",
)
@constraint_options
@sampling_options
@runtime_options
def chat(
    path: str | None,
    system: str | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    reasoning: bool | None,
    template_options: str | None,
    constraint: dict[str, Any],
    sampling: Sampling,
    runtime: dict[str, Any],
) -> None:
    """Talk with a model. Lines from a pipe are messages too; only answers go to stdout. /help says more."""
    from gguf_moe.chat import Conversation

    variables = _read_object(template_options)
    if path is None:
        path = str(DEMO_MODEL)
        _note("No model was given (-m FILE): with the demo model you write stories in turn.")
    progress = ProgressLine()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with load(path, runtime, progress) as model:
        conversation = Conversation(model, system, variables)
        conversation.check()
        if interactive:
            click.echo(click.wrap_text(about(model), shutil.get_terminal_size().columns), err=True)
            click.echo("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.\n", err=True)
        options = {"max_tokens": max_tokens, "stop": stop, "sampling": sampling, "progress": progress}
        Dialogue(conversation, Screen(reasoning), progress, options | constraint).run(interactive)


class Dialogue:
    """Reads lines; answers them, or does what they command. `options` are those of Model.generate."""

    def __init__(
        self, conversation: Conversation, screen: Screen, progress: ProgressLine, options: dict[str, Any]
    ):
        self._conversation = conversation
        self._screen = screen
        self._progress = progress
        self._options = options
        self._last: Result | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _note(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/again": lambda _: self._answer(self._conversation.again(**self._options)),
            "/save": self._save,
            "/load": self._load,
            "/stats": lambda _: self._stats(),
        }

    def run(self, interactive: bool) -> None:
        """Until the end of the input, or /exit. An error ends it too if no person is there to read it."""
        for text in _typed() if interactive else _piped():
            if text.split()[0] in ("/exit", "/quit", "/bye"):
                return
            try:
                self._do(text)
            except GGUFMoeError as e:
                if not interactive:
                    raise
                _note(f"Error: {e}")
            if interactive:
                click.echo()

    def _do(self, text: str) -> None:
        word, _, argument = text.partition(" ")
        if word in self._commands:
            self._commands[word](argument.strip())
        elif word.startswith("/") and word[1:].isalpha():
            raise OptionError(f"{word} is not a command; /help lists them.")
        else:
            self._answer(self._conversation.ask(text, **self._options))

    def _answer(self, turn: Turn) -> None:
        self._last = turn.result
        try:
            for segment in turn:
                self._progress.clear()
                self._screen.show(segment)
            self._screen.end()
            if turn.result.finish_reason == "length" and self._options["max_tokens"] is None:
                _note(f"[the context of {self._conversation.model.n_ctx} tokens is full; /reset begins anew]")
        except KeyboardInterrupt:
            self._progress.clear()
            self._screen.end()
            _note("[stopped]")
        finally:
            turn.close()

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        _note("[a new conversation]")

    def _system(self, text: str) -> None:
        self._conversation.reset(text)
        _note("[a new conversation with this system prompt]" if text else "[no system prompt]")

    def _save(self, name: str) -> None:
        messages = self._conversation.messages
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1)
        try:
            with written_whole(_path(name, "/save")) as file:
                file.write(f"{text}\n".encode())
        except OSError as e:
            raise OptionError(f"{name} cannot be written ({e.strerror}); choose another place.") from e
        _note(f"[{len(messages)} messages kept in {name}]")

    def _load(self, name: str) -> None:
        text = read_file(_path(name, "/load"))
        try:
            messages = json.loads(text)["messages"]
            if not isinstance(messages, list):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise OptionError(f"{name} is no conversation that /save has written.") from None
        self._conversation.replace(messages)
        _note(f"[{len(messages)} messages from {name}]")

    def _stats(self) -> None:
        model = self._conversation.model
        _note(f"context: {self._conversation.n_tokens} of {model.n_ctx} tokens")
        if self._last:
            _note(f"last answer: {self._last.n_reused} tokens reused")
            _note(summary(self._last))
        if model.gpu:
            _note(slots_line(model.gpu))
            _note(usage_line(model.gpu.usage()))


def _typed() -> Iterator[str]:
    """Messages typed at a prompt, with the arrow keys' history of this chat."""
    with suppress(ImportError):
        import readline

        readline.set_auto_history(True)
    while True:
        try:
            text = _message(input)
        except KeyboardInterrupt:
            _note("\n[Ctrl-D or /exit ends the chat]")
            continue
        except EOFError:
            click.echo()
            return
        if text:
            yield text


def _piped() -> Iterator[str]:
    """Messages from a pipe or file."""
    lines = iter(sys.stdin.buffer)

    def read(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return decode_utf8(line, "stdin").rstrip("\r\n")

    while True:
        try:
            text = _message(read)
        except EOFError:
            return
        if text:
            yield text


def _message(read: Callable[[str], str]) -> str:
    """One message, which may have several lines."""
    text = read("> ")
    if text.lstrip().startswith(_QUOTES):
        text = text.lstrip().removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + read(". ")
        return text.rstrip().removesuffix(_QUOTES).strip()
    while text.endswith("\\"):
        text = text[:-1] + "\n" + read(". ")
    return text.strip()


def _read_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OptionError(f"--chat-template-kwargs {text!r} must be a JSON object.")
    return value


def _path(name: str, command: str) -> Path:
    if not name:
        raise OptionError(f"{command} needs the name of a file.")
    return Path(name).expanduser()


def _note(text: str) -> None:
    click.echo(text, err=True)
