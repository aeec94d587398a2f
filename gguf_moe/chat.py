"""A conversation of several turns on one model's KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gguf_moe.errors import OptionError
from gguf_moe.generate import Generation, Result
from gguf_moe.prompts import ChatPrompt, Tools, check_tools
from gguf_moe.text.reasoning import Kind, Segment

if TYPE_CHECKING:
    from gguf_moe.model import Model

_QUESTION = {"role": "user", "content": "?"}
ROLES = ("system", "user", "assistant", "tool")


class Conversation:
    """Messages in OpenAI's form, and the tokens that the model has read and written for them.

    A turn gives the model exactly the tokens of the turns before, so that none of them is computed again,
    unless the chat template changes what came before (some leave out old thoughts).
    template_options: variables for the chat template. tools: in OpenAI's form, which an answer may call.
    Raises OptionError if they are not in that form.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        tools: Tools | None = None,
    ):
        self.model = model
        self.template_options = dict(template_options or {})
        self.tools, _ = check_tools(tools, None)
        self.messages: list[dict[str, Any]] = []
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Begin anew; `system` None keeps the system prompt, "" takes it away."""
        kept = [message for message in self.messages[:1] if message["role"] == "system"]
        if system is not None:
            kept = [{"role": "system", "content": system}] if system else []
        self.messages = kept
        self._before = self.messages
        """What they were before the turn that is open."""
        self._text, self._ids = "", list[int]()

    @property
    def n_tokens(self) -> int:
        """Tokens of the turns so far."""
        return len(self._ids)

    def check(self) -> None:
        """Raise TemplateError if the chat template is broken, or refuses these messages."""
        self._render([*self.messages, _QUESTION], self.tools)

    def replace(self, messages: list[dict[str, Any]]) -> None:
        """Go on from other messages. Raises OptionError if they are not messages."""
        for message in messages:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise OptionError(
                    f"a message needs a role, one of {', '.join(ROLES)}: {str(message)[:80]!r}."
                )
            if not isinstance(message.get("content"), str):
                raise OptionError(f"the message of the {message['role']} has no text as its content.")
        self.messages = [dict(message) for message in messages]
        self._text, self._ids = "", []

    def ask(self, text: str, **options: Any) -> Turn:
        """The answer to a user's message; options as for Model.generate, and tool_choice as OpenAI has it.

        Raises what Model.generate raises, and OptionError for a choice that cannot be demanded.
        If it raises, the conversation is as before. What is read of the turn is kept, also if it is closed
        before its end.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}], options)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of tools that wait for their results, in OpenAI's form."""
        return list(self.messages[-1].get("tool_calls") or ()) if self.messages else []

    def reply(self, *results: str, **options: Any) -> Turn:
        """The answer to what the tools gave, one text for each of `calls`; options as for `ask`.

        Raises OptionError if there are not as many results as calls.
        """
        calls = self.calls
        if not calls or len(results) != len(calls):
            raise OptionError(
                f"there are {len(results)} results for {len(calls)} waiting calls; give one text for each."
            )
        return self._answer([*self.messages, *map(_result, calls, results)], options)

    def again(self, **options: Any) -> Turn:
        """Another answer to the last message of the user. Raises OptionError if there is none."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise OptionError("there is no message to answer again; ask something first.")
        return self._answer(self.messages[: asked[-1] + 1], options)

    def _answer(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> Turn:
        prompt = self._prompt(messages, options.pop("tool_choice", None))
        generation = self.model.generate(prompt, **options)
        self._before, self.messages = self.messages, messages
        return Turn(self, prompt, generation)

    def _prompt(self, messages: list[dict[str, Any]], tool_choice: Any) -> ChatPrompt:
        """The prompt, whose tokens begin with those of the turns before if its text does."""
        told, wanted = check_tools(self.tools, tool_choice)
        text, ids = self._render(messages, told), None
        tokenizer = self.model.tokenizer
        if self._text and text.startswith(self._text):
            rest = tokenizer.encode(text[len(self._text) :], bos=False)
            # A control token separates what comes before from what comes after.
            if rest and tokenizer.is_control(rest[0]):
                ids = self._ids + rest
        return self.model.prompts.of_text(text, ids=ids, tools=told, wanted=wanted)

    def finish(
        self, prompt: str, result: Result, answer: str, reasoning: str, calls: list[dict[str, Any]]
    ) -> None:
        """Keep a turn's tokens and its message; a turn calls this at its end. Without an answer, neither."""
        if not result.token_ids and not result.finish_reason:
            self.messages = self._before
            return
        written = b"".join(map(self.model.tokenizer.token_bytes, result.token_ids))
        self._text = prompt + written.decode(errors="replace")
        self._ids = result.prompt_token_ids + result.token_ids
        others: dict[str, Any] = {"reasoning_content": reasoning.strip()} if reasoning.strip() else {}
        if calls:
            others["tool_calls"] = calls
        following = [_result(call, "?") for call in calls] or [_QUESTION]
        # Some templates put a space before an answer that the model has written too, others keep all.
        for content in (answer, answer.strip()):
            message = {"role": "assistant", "content": content, **others}
            prompt = self._render([*self.messages, message, *following], self.tools)
            if prompt.startswith(self._text):
                break
        self.messages = [*self.messages, message]

    def _render(self, messages: list[dict[str, Any]], tools: Tools) -> str:
        return self.model.prompts.render(messages, tools=tools or None, **self.template_options)


def _result(call: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The message with what a call gave."""
    return {
        "role": "tool",
        "tool_call_id": call["id"],
        "name": call["function"]["name"],
        "content": content,
    }


class Turn:
    """An iterator over the parts of an answer. Close it to stop early; what was read is kept."""

    def __init__(self, conversation: Conversation, prompt: ChatPrompt, generation: Generation):
        self.result = generation.result
        """Numbers and tokens; complete when the iteration is over."""
        self._conversation = conversation
        self._prompt = prompt.text
        self._generation = generation
        self._splitter = prompt.splitter()
        self._said: list[Segment] = []
        self._open = True

    def __iter__(self) -> Iterator[Segment]:
        try:
            for piece in self._generation:
                yield from self._keep(self._splitter.push(piece.text))
            yield from self._keep(self._splitter.flush())
        finally:
            self.close()

    def close(self) -> None:
        """Stop, and put what was said into the conversation. Twice is fine."""
        self._generation.close()
        if self._open:
            self._open = False
            answer, reasoning = (self._text(kind) for kind in (Kind.ANSWER, Kind.REASONING))
            calls = [segment.call.as_openai() for segment in self._said if segment.call]
            self._conversation.finish(self._prompt, self.result, answer, reasoning, calls)

    def _keep(self, segments: list[Segment]) -> list[Segment]:
        self._said += segments
        return segments

    def _text(self, kind: Kind) -> str:
        return "".join(segment.text for segment in self._said if segment.kind is kind)
