"""The prompt that a chat template makes of messages. The template is Jinja source in the file's metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import OptionError, TemplateError
from gguf_moe.text import known_templates
from gguf_moe.text.messages import for_template
from gguf_moe.text.tokenizer import MAX_TEXT_LENGTH, Tokenizer

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "tokenizer.chat_template"

MAX_SOURCE_LENGTH = 1 << 17
"""Characters of a template. The longest in use have some 20,000."""


class ChatTemplate:
    """A chat template. It is read when first rendered, so that a broken one does not stop other uses."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._code: Any = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt. `kwargs` are further variables of the template, such as enable_thinking.

        The arguments of earlier calls are objects for it, or texts if it fails with objects. Raises
        TemplateError when the template is wrong, refuses the messages, or does too much work.
        """
        variables = {
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **kwargs,
        }
        try:
            return self._render(variables | {"messages": for_template(messages, as_objects=True)})
        except TemplateError:
            if any(message.get("tool_calls") for message in messages):
                with suppress(TemplateError):
                    return self._render(variables | {"messages": for_template(messages, as_objects=False)})
            raise

    def _compiled(self) -> Any:
        if len(self.source) > MAX_SOURCE_LENGTH:
            raise TemplateError(
                f"The chat template has {len(self.source)} characters, but at most {MAX_SOURCE_LENGTH} "
                "are allowed; use another template."
            )
        if self._code is None:
            from gguf_moe.text.sandbox import compile_template

            try:
                self._code = compile_template(self.source)
            except Exception as error:  # deep nesting shows up as errors of Python's own compiler
                raise TemplateError(f"The chat template cannot be read: {_told(error)}.") from error
        return self._code

    def _render(self, variables: Mapping[str, Any]) -> str:
        code = self._compiled()
        from gguf_moe.text.sandbox import render_template

        pieces, length = [], 0
        try:
            for piece in render_template(code, variables):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_TEXT_LENGTH:
                    raise TemplateError(f"The chat template makes more than {MAX_TEXT_LENGTH} characters.")
        except TemplateError:
            raise
        except Exception as error:  # a template can raise whatever Python's operators raise
            raise TemplateError(f"The chat template failed: {_told(error)}.") from error
        return "".join(pieces)


def find_chat_template(
    metadata: Metadata, tokenizer: Tokenizer, *, name: str | None = None
) -> ChatTemplate | None:
    """The chat template of a file, or one that its vocabulary or name calls for; None if nothing does.

    `name` asks for one of the further templates that some files have, such as "tool_use" or "rag". Raises
    OptionError when the file has none of that name.
    """
    if name in (None, "default"):
        source = metadata.string(TEMPLATE_KEY, None)
    else:
        source = metadata.string(f"{TEMPLATE_KEY}.{name}", None)
        if source is None:
            prefix = TEMPLATE_KEY + "."
            names = [key.removeprefix(prefix) for key in metadata if key.startswith(prefix)]
            raise OptionError(
                f"{metadata.path} has no chat template named {name!r}; it has "
                f"{', '.join(sorted(names)) or 'no named ones'}."
            )
    if source is None:
        whose, source = _known_template(metadata, tokenizer)
        if source is None:
            return None
        logger.warning("%s has no chat template; the one of %s is used.", metadata.path, whose)
    return _template(source, tokenizer)


def plain_template(tokenizer: Tokenizer) -> ChatTemplate:
    """The template for a model that only continues texts."""
    return _template(known_templates.PLAIN, tokenizer)


def _template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    bos_token, eos_token = (_text(tokenizer, token) for token in (tokenizer.bos_id, tokenizer.eos_id))
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)


def _known_template(metadata: Metadata, tokenizer: Tokenizer) -> tuple[str, str | None]:
    """Whose template suits a file without one, and its source, None if none does."""
    if _is_early_mistral(metadata):
        return "Mixtral Instruct", known_templates.MISTRAL
    if all(tokenizer.control_id(token) is not None for token in known_templates.CHATML_TOKENS):
        return "ChatML", known_templates.CHATML
    return "", None


def _is_early_mistral(metadata: Metadata) -> bool:
    """Whether a file is of Mistral's own instruction models; models made from them have other templates."""
    keys = ("general.name", "general.basename", "general.finetune")
    names = " ".join(metadata.string(key, "") for key in keys).lower()
    return (
        metadata.string("general.architecture", "") == "llama"
        and ("mistral" in names or "mixtral" in names)
        and "instruct" in names
    )


def _text(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token_bytes(token_id).decode(errors="replace")


def _told(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    where = "" if line is None else f"line {line}: "
    message = " ".join(str(error).split())[:300].rstrip(".")
    return f"{where}{type(error).__name__}" + (f": {message}" if message else "")
