"""The prompts that a model's chat template makes of messages, and what is known of the answers to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_moe.constrain import NO_PREFACE, Grammar, preface_of, tool_choice_grammar
from gguf_moe.errors import OptionError
from gguf_moe.text.call_formats import find_format
from gguf_moe.text.chat_template import ChatTemplate, plain_template
from gguf_moe.text.reasoning import Splitter, splitter_for
from gguf_moe.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Tools = Sequence[Mapping[str, Any]]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A prompt for a model that chats. Model.generate takes it in place of a text."""

    text: str
    ids: list[int]
    template: str
    """The source of the chat template."""
    tools: Tools = ()
    """What the template was told of."""
    preface: str = NO_PREFACE
    """What may come before an answer that must fit a grammar."""
    call: Grammar | None = None
    """What the answer must be, as a tool has to be called."""
    shown: frozenset[int] = frozenset()
    """Control tokens that calls are written with, so that the text must have them."""

    def splitter(self) -> Splitter:
        """What separates the thoughts, the calls and the rest of the answer."""
        return splitter_for(self.template, self.text, self.tools)


class Prompts:
    """Makes prompts for one model. path: its file, for messages.

    Without a template the messages are one text, which the model continues; a warning says so once.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, template: ChatTemplate | None):
        self._path = path
        self._tokenizer = tokenizer
        self._template = template or plain_template(tokenizer)
        self._warns = template is None

    def make(
        self, messages: Messages, *, tools: Tools | None = None, tool_choice: Any = None, **variables: Any
    ) -> ChatPrompt:
        """The prompt for an answer to messages in OpenAI's form.

        tools and tool_choice ("none", "auto", "required", or an object that names a function) as OpenAI has
        them; `variables` are further ones of the template. Raises TemplateError, or OptionError if what is
        asked for is wrong.
        """
        told, wanted = check_tools(tools, tool_choice)
        text = self.render(messages, tools=told or None, **variables)
        return self.of_text(text, tools=told, wanted=wanted)

    def render(self, messages: Messages, **variables: Any) -> str:
        """The text alone. Raises TemplateError."""
        if self._warns:
            self._warns = False
            logger.warning("%s has no chat template: the model continues what is written.", self._path)
        return self._template.render(messages, **variables)

    def of_text(
        self, text: str, *, ids: list[int] | None = None, tools: Tools = (), wanted: Tools = ()
    ) -> ChatPrompt:
        """The prompt with a text of `render`. ids: its tokens, None to find them. wanted: one must be called.

        Raises OptionError if a call cannot be demanded of this model.
        """
        source, control_id = self._template.source, self._tokenizer.control_id
        form = find_format(source) if tools else None
        return ChatPrompt(
            text,
            self._tokenize(text) if ids is None else ids,
            source,
            tools,
            preface_of(source, text, control_id, is_call=bool(wanted)),
            tool_choice_grammar(source, wanted, control_id) if wanted else None,
            form.control_ids(control_id) if form else frozenset(),
        )

    def _tokenize(self, text: str) -> list[int]:
        """The ids of a template's text, which may begin with the BOS token."""
        bos_token = self._template.bos_token
        return self._tokenizer.encode(text, bos=False if bos_token and text.startswith(bos_token) else None)


def check_tools(tools: Any, choice: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tools that the template is told of, and those of which one must be called. Raises OptionError."""
    told = _checked(tools)
    if choice in (None, "auto"):
        return told, []
    if choice == "none":
        return [], []
    if not told:
        raise OptionError("tool_choice asks for a call, but there are no tools; give some, or leave it out.")
    if choice == "required":
        return told, told
    named = choice.get("function") if isinstance(choice, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else None
    wanted = [tool for tool in told if tool["function"]["name"] == name]
    if not wanted:
        raise OptionError(
            f"tool_choice is {str(choice)[:80]!r}, but must be none, auto, required, or an object that names "
            "one of the tools."
        )
    return told, wanted


def _checked(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, Sequence | None) or isinstance(tools, str):
        raise OptionError("tools must be a list of objects.")
    for i, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise OptionError(
                f'tool {i} has no function with a name; OpenAI\'s form has "function": {{"name": ...}}.'
            )
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise OptionError(f"the parameters of the tool {function['name'][:80]!r} must be a JSON schema.")
    return [dict(tool) for tool in tools or ()]
