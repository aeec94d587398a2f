"""The tokens of a file, checked: their texts and types, and the ids that have a meaning."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from pathlib import Path

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError

logger = logging.getLogger(__name__)

TOKENS_KEY = "tokenizer.ggml.tokens"

MAX_TOKEN_LENGTH = 4096
"""Characters of one token. The longest in use are runs of some hundred spaces."""

# How files spell "there is no such token": -1, also when written as an unsigned number.
_NONE = (-1, 0xFFFF_FFFF)

_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}

# Keys of older files, read when the newer key is missing.
_OLD_KEYS = {
    "fim_pre": "tokenizer.ggml.prefix_token_id",
    "fim_suf": "tokenizer.ggml.suffix_token_id",
    "fim_mid": "tokenizer.ggml.middle_token_id",
}

# A wrong id of one of these changes what the model reads or where it stops; the others are hints.
_VITAL = ("bos", "eos", "eot", "eom", "unk")


class TokenType(enum.IntEnum):
    """The values of tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file. `types` may hold numbers that are no TokenType; such tokens have no text."""

    path: Path
    tokens: list[str]  # [n_vocab]; bytes that are not UTF-8 are lone surrogates (surrogateescape)
    types: list[int]  # [n_vocab]
    ids: dict[str, int]  # the first id of each text; a text that is empty or not UTF-8 has none
    special_ids: dict[str, int | None]  # by role: "bos", "eos", "eot", "eom", "unk", "pad", "fim_pre", ...


def read_vocabulary(metadata: Metadata, defaults: dict[str, int]) -> Vocabulary:
    """The vocabulary of a file; `defaults` are the special ids that hold when their keys are missing.

    Raises GGUFError when there are no tokens, when one is longer than MAX_TOKEN_LENGTH, when token_type has
    another length, and when a special id is not the id of a token.
    """
    tokens = metadata.strings(TOKENS_KEY)
    if not tokens:
        raise metadata.wrong(TOKENS_KEY, "an array of at least one token")
    length = max(map(len, tokens))
    if length > MAX_TOKEN_LENGTH:
        longest = next(i for i, text in enumerate(tokens) if len(text) == length)
        raise GGUFError(
            f"{metadata.path}: token {longest} of {TOKENS_KEY} has {length} characters, but at most "
            f"{MAX_TOKEN_LENGTH} are allowed; the file is damaged or was made to do harm: download it again."
        )
    types_key = "tokenizer.ggml.token_type"
    types = metadata.integers(types_key, None)
    if types is not None:
        check_length(metadata, types_key, len(types), len(tokens))
    return Vocabulary(
        path=metadata.path,
        tokens=tokens,
        types=[int(TokenType.NORMAL)] * len(tokens) if types is None else types.tolist(),
        ids=_ids(tokens),
        special_ids={role: _special_id(metadata, role, len(tokens), defaults.get(role)) for role in _KEYS},
    )


def check_length(metadata: Metadata, key: str, length: int, n_vocab: int) -> None:
    """Raise GGUFError unless the array under `key` has one element for each token."""
    if length != n_vocab:
        raise metadata.wrong(key, f"an array of {n_vocab} elements, one for each of {TOKENS_KEY}")


def _ids(tokens: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, text in enumerate(tokens):
        ids.setdefault(text, i)
    ids.pop("", None)
    if not _is_unicode("".join(tokens)):
        return {text: i for text, i in ids.items() if _is_unicode(text)}
    return ids


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _special_id(metadata: Metadata, role: str, n_vocab: int, default: int | None) -> int | None:
    key = _KEYS[role]
    if key not in metadata and role in _OLD_KEYS:
        key = _OLD_KEYS[role]
    found = metadata.integer(key, None)
    if found is None:
        return default if default is not None and default < n_vocab else None
    if found in _NONE:
        return None
    if 0 <= found < n_vocab:
        return found
    wrong = metadata.wrong(key, f"the id of a token, from 0 to {n_vocab - 1}")
    if role in _VITAL:
        raise wrong
    logger.warning("%s The key is ignored.", wrong)
    return None
