"""How families of models write calls of tools: a table, and which row a chat template belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

_FIELDS = {
    "{name}": r"(?P<name>[\w.:-]+)",
    "{id}": r"(?P<id>[\w.:-]+)",
    "{functions.name:0}": r"(?P<id>functions\.(?P<name>[\w.-]+):\d+)",
    "{is_text}": r"(?:true|false)",
    "{key}": r'(?P<key>[^<>"]+?)',
    "{value}": r"(?P<value>.*?)",
    "\n{value}\n": r"\n?(?P<value>.*?)\n?",
    "\n": r"\s*",
}
_MARKER = re.compile(r"<[^<>\s=\"]+>|\[[A-Z_]+\]")


@dataclass(frozen=True)
class Format:
    """One way to write calls. In head, argument and tail a line end stands for any white space.

    Between `opening` and `closing` are calls: JSON objects with a name and arguments, or lists of these; or
    with a `head`, which has the name, its arguments and a `tail`. The arguments are `argument` once for each,
    or else a JSON object. Without a `closing` a call goes to the next opening, or to the answer's end.
    """

    signs: tuple[str, ...]
    """Texts that are all in the chat templates of models that write so."""
    opening: str
    closing: str = ""
    head: str = ""
    argument: str = ""
    tail: str = ""
    arguments_key: str = "arguments"
    """What JSON objects with names call the arguments."""
    is_bare: bool = False
    """An answer may be such objects without the opening."""
    is_list: bool = False
    """The objects are in a list."""
    quote: str = ""
    """What stands for the quotes of JSON texts, in objects whose keys have none."""

    @cached_property
    def head_pattern(self) -> re.Pattern[str]:
        """What is before the arguments, with the groups `name` and perhaps `id`."""
        return re.compile(r"\s*" + _pattern(self.head), re.DOTALL)

    @cached_property
    def argument_pattern(self) -> re.Pattern[str]:
        """One argument, with the groups `key` and `value`."""
        return re.compile(r"\s*" + _pattern(self.argument), re.DOTALL)

    @cached_property
    def tail_pattern(self) -> re.Pattern[str]:
        """What is behind the arguments."""
        return re.compile(r"\s*" + _pattern(self.tail) + r"\s*", re.DOTALL)

    def control_ids(self, control_id: Callable[[str], int | None]) -> frozenset[int]:
        """The control tokens that calls are written with. control_id: of a token's text, or None."""
        text = self.opening + self.head + self.argument + self.tail + self.closing
        ids = (control_id(marker) for marker in markers(text))
        return frozenset(i for i in ids if i is not None)


def markers(text: str) -> list[str]:
    """What may be tokens of their own in a text that calls are written with."""
    return _MARKER.findall(text)


def find_format(template: str) -> Format | None:
    """How the model of a chat template writes calls; None if the template shows no way that is known.

    gpt-oss's calls are messages of their own, which `reasoning.HarmonySplitter` reads.
    """
    return next((f for f in FORMATS if all(sign in template for sign in f.signs)), None)


def _pattern(text: str) -> str:
    pieces = re.split(r"(\n\{value\}\n|\{[^{}]+\}|\n)", text)
    return "".join(_FIELDS.get(piece) or re.escape(piece) for piece in pieces)


def _bar(words: str) -> str:
    """A token of DeepSeek's."""
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


_DSML = "\uff5cDSML\uff5c"

# The first that fits counts.
FORMATS = (
    # Gemma 4
    Format(
        signs=("<|tool_call>call:",),
        opening="<|tool_call>",
        closing="<tool_call|>",
        head="call:{name}",
        quote='<|"|>',
    ),
    # MiniMax-M2
    Format(
        signs=("<minimax:tool_call>", '<invoke name="'),
        opening="<minimax:tool_call>",
        closing="</minimax:tool_call>",
        head='\n<invoke name="{name}">',
        argument='\n<parameter name="{key}">{value}</parameter>',
        tail="\n</invoke>\n",
    ),
    # DeepSeek-V3.2
    Format(
        signs=(_DSML, "function_calls>"),
        opening=f"<{_DSML}function_calls>",
        closing=f"</{_DSML}function_calls>",
        head=f'\n<{_DSML}invoke name="{{name}}">',
        argument=f'\n<{_DSML}parameter name="{{key}}" string="{{is_text}}">{{value}}</{_DSML}parameter>',
        tail=f"\n</{_DSML}invoke>\n",
    ),
    # Kimi-K2
    Format(
        signs=("<|tool_calls_section_begin|>",),
        opening="<|tool_calls_section_begin|>",
        closing="<|tool_calls_section_end|>",
        head="<|tool_call_begin|>{functions.name:0}<|tool_call_argument_begin|>",
        tail="<|tool_call_end|>",
    ),
    # DeepSeek-V3 and R1
    Format(
        signs=(_bar("tool sep"), "```json"),
        opening=_bar("tool calls begin"),
        closing=_bar("tool calls end"),
        head=_bar("tool call begin") + "function" + _bar("tool sep") + "{name}\n```json\n",
        tail="\n```" + _bar("tool call end"),
    ),
    # DeepSeek-V3.1
    Format(
        signs=(_bar("tool sep"),),
        opening=_bar("tool calls begin"),
        closing=_bar("tool calls end"),
        head=_bar("tool call begin") + "{name}" + _bar("tool sep"),
        tail=_bar("tool call end"),
    ),
    # GLM-4.5 to 4.7
    Format(
        signs=("<tool_call>", "<arg_key>"),
        opening="<tool_call>",
        closing="</tool_call>",
        head="{name}\n",
        argument="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    ),
    # Qwen3-Coder, Qwen3.5
    Format(
        signs=("<tool_call>", "<function=", "<parameter="),
        opening="<tool_call>",
        closing="</tool_call>",
        head="\n<function={name}>",
        argument="\n<parameter={key}>\n{value}\n</parameter>",
        tail="\n</function>\n",
    ),
    # Hermes, Qwen2.5, Qwen3, and many after them
    Format(signs=("<tool_call>", "</tool_call>"), opening="<tool_call>", closing="</tool_call>"),
    # Granite 3
    Format(signs=("<|tool_call|>",), opening="<|tool_call|>", is_list=True),
    # Mistral Small 3.2
    Format(
        signs=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        opening="[TOOL_CALLS]",
        head="{name}[CALL_ID]{id}[ARGS]",
    ),
    # Devstral, Ministral 3
    Format(signs=("[TOOL_CALLS]", "[ARGS]"), opening="[TOOL_CALLS]", head="{name}[ARGS]"),
    # Mistral Nemo, Mixtral 8x22B
    Format(signs=("[TOOL_CALLS]",), opening="[TOOL_CALLS]", is_list=True),
    # Llama 3 and 4
    Format(
        signs=('"parameters": dictionary',),
        opening="<|python_tag|>",
        arguments_key="parameters",
        is_bare=True,
    ),
)
