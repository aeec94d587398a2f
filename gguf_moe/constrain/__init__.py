"""Output that must fit a JSON schema, a regular expression or a grammar. llguidance follows the grammar."""

from gguf_moe.constrain.grammar import Grammar, find_grammar
from gguf_moe.constrain.matcher import Matcher, Matchers
from gguf_moe.constrain.preface import NO_PREFACE, preface_of
from gguf_moe.constrain.tool_choice import tool_choice_grammar

__all__ = [
    "NO_PREFACE",
    "Grammar",
    "Matcher",
    "Matchers",
    "find_grammar",
    "preface_of",
    "tool_choice_grammar",
]
