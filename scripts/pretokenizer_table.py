"""Where our pre-tokenizers cut otherwise than llama.cpp's, and why (pretokenizer_fixtures.py has the texts).

Ours take the regular expressions of the models' own tokenizer.json files, which the models were trained with.
llama.cpp's engine (src/unicode.cpp) can only approximate some of them.
"""

from __future__ import annotations

from dataclasses import dataclass

ONE_CASE = "upper and lower case are one class of letters"
ASCII_CASE = "only ASCII's letters have a case"
NO_MARKS = "combining marks end a word"
SPACES = "spaces outside ASCII are taken for a control character, so ranges such as U+0800-U+4E00 miss them"


@dataclass(frozen=True)
class Difference:
    """What llama.cpp does otherwise with these names, and in how many of the texts it shows."""

    names: str
    llama_cpp: tuple[str, ...]
    n_texts: int


DIFFERENCES = (
    Difference("gpt-4o kanana2 llama4 minimax-m2 talkie tekken", (NO_MARKS, ASCII_CASE), 9),
    Difference("kimi-k2", (NO_MARKS, ONE_CASE, "some Han characters such as U+3005 are not Han"), 11),
    Difference("cohere2moe tiny_aya", (ONE_CASE, "words end where ASCII ends, before digits are grouped"), 4),
    Difference("youtu", (ONE_CASE,), 3),
    Difference("granite-embed-multi-97m", (ASCII_CASE,), 2),
    Difference("deepseek-coder deepseek-llm", (SPACES,), 1),
    Difference("superbpe", ("only ASCII's digits are grouped",), 1),
)
