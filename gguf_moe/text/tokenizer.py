"""Text to token ids and back, as the metadata of a GGUF file defines it."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError, OptionError, UnsupportedModelError
from gguf_moe.text.bpe import build_bpe, byte_level_alphabet
from gguf_moe.text.end_of_generation import find_end_tokens
from gguf_moe.text.pretokenizers import PRE_TOKENIZERS, find_pre_tokenizer
from gguf_moe.text.special_tokens import SpecialTokens
from gguf_moe.text.spm import build_spm
from gguf_moe.text.vocabulary import TokenType, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

MODEL_KEY = "tokenizer.ggml.model"
ADD_BOS_KEY = "tokenizer.ggml.add_bos_token"

MAX_TEXT_LENGTH = 6 << 20
"""Bytes of UTF-8 of one text, more than a million tokens. Each takes some 150 bytes of memory for a while."""

_SPACE_MARK = "\u2581"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_ALPHABET = byte_level_alphabet()

# The ids of SentencePiece itself, for files that do not name them.
_SPM_IDS = {"unk": 0, "bos": 1, "eos": 2}


@dataclass(frozen=True, slots=True)
class _Encoder:
    """What turns text without special tokens into ids, and how its tokens are written."""

    words: tokenizers.Tokenizer
    byte_level: bool  # each character of a token is a byte; else tokens are text with U+2581 for a space
    space_prefix: bool  # a space goes before the text, and before text that follows a special token
    add_bos: bool


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads.

    `eog_ids` are the tokens that end a generation; `suppressed_ids` must never be generated. `add_bos` and
    `add_eos` say what the file wants around a text: `encode` follows the first and leaves the second to the
    caller, because a prompt is a text to be continued.
    """

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary, encoder: _Encoder) -> None:
        """Use `build_tokenizer`."""
        self.eog_ids = find_end_tokens(vocabulary)
        self.suppressed_ids = _suppressed_ids(metadata, len(vocabulary.tokens))
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id = vocabulary.special_ids["bos"]
        self.eos_id = vocabulary.special_ids["eos"]
        self.eot_id = vocabulary.special_ids["eot"]
        self.eom_id = vocabulary.special_ids["eom"]
        self.unk_id = vocabulary.special_ids["unk"]
        self.pad_id = vocabulary.special_ids["pad"]
        self.add_bos = encoder.add_bos
        self.add_eos = metadata.boolean("tokenizer.ggml.add_eos_token", False)
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._special_tokens = SpecialTokens(
            vocabulary, swallow_spaces=_space_swallowers(metadata, vocabulary)
        )
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, bos: bool | None = None, special: bool = True) -> list[int]:
        """The ids of a text.

        `bos` puts the BOS token first, unless the text starts with it; None does what the file says. With
        `special` the text of a control token becomes that token; without it such text is plain, as a text
        from an untrusted source should be. User-defined tokens are found either way. Raises OptionError for a
        text that is too long or is not Unicode, and for `bos` without a BOS token.
        """
        _check_text(text)
        ids: list[int] = []
        after_special = True
        for piece in self._special_tokens.split(text, control=special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_words(piece, after_special)
            after_special = isinstance(piece, int)
        if self.add_bos if bos is None else bos:
            self._put_bos_first(ids)
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text of ids; `special` shows control tokens, else they are left out.

        Invalid UTF-8 becomes U+FFFD. The space that `encode` puts before a text is taken off again. Raises
        OptionError for an unknown id.
        """
        ids = list(ids)
        pieces = [self._piece(token_id, special) for token_id in ids]
        start = 1 if ids and ids[0] == self.bos_id else 0
        if self._encoder.space_prefix and ids[start:] and self._type(ids[start]) == TokenType.NORMAL:
            pieces[start] = pieces[start].removeprefix(b" ")
        return b"".join(pieces).decode(errors="replace")

    def stream(self, *, shown: Collection[int] = ()) -> TokenStream:
        """A decoder that takes one id at a time, for a text that continues another; keeps a leading space.

        Control tokens are left out, but those of `shown` are not.
        """
        return TokenStream(lambda token_id: self._piece(token_id, token_id in shown))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, often only a part of a character. Raises OptionError for an unknown id."""
        found = self._bytes.get(token_id)
        if found is None:
            if not 0 <= token_id < self.n_vocab:
                raise OptionError(f"There is no token {token_id}; the ids go from 0 to {self.n_vocab - 1}.")
            found = self._bytes[token_id] = self._make_bytes(token_id)
        return found

    def is_control(self, token_id: int) -> bool:
        """Whether a token has a meaning in place of a text, such as BOS. `token_id` is below n_vocab."""
        return self._type(token_id) in (TokenType.CONTROL, TokenType.UNKNOWN)

    def control_id(self, text: str) -> int | None:
        """The id of the control token with this text, if there is one."""
        found = self._vocabulary.ids.get(text)
        return found if found is not None and self.is_control(found) else None

    def _type(self, token_id: int) -> int:
        return self._vocabulary.types[token_id]

    def _encode_words(self, text: str, after_special: bool) -> list[int]:
        if self._encoder.space_prefix and after_special:
            text = " " + text
        if not self._encoder.byte_level:
            text = text.replace(" ", _SPACE_MARK)
        return self._encoder.words.encode(text, add_special_tokens=False).ids

    def _put_bos_first(self, ids: list[int]) -> None:
        if self.bos_id is None:
            raise OptionError(f"{self._vocabulary.path} has no BOS token to put before a text.")
        if ids[:1] == [self.bos_id]:
            logger.warning("The text starts with the BOS token, so it is not added a second time.")
        else:
            ids.insert(0, self.bos_id)

    def _piece(self, token_id: int, special: bool) -> bytes:
        found = self.token_bytes(token_id)
        return found if special or not self.is_control(token_id) else b""

    def _make_bytes(self, token_id: int) -> bytes:
        text = self._vocabulary.tokens[token_id]
        match self._type(token_id):
            case TokenType.NORMAL:
                if not self._encoder.byte_level:
                    text = text.replace(_SPACE_MARK, " ")
                elif all(character in _ALPHABET for character in text):
                    return bytes(_ALPHABET[character] for character in text)
            case TokenType.BYTE:
                byte = _BYTE_TOKEN.fullmatch(text)
                if byte is not None:
                    return bytes.fromhex(byte[1])
            case TokenType.CONTROL | TokenType.UNKNOWN | TokenType.USER_DEFINED:
                pass
            case _:
                return b""
        return text.encode(errors="surrogateescape")


class TokenStream:
    """Bytes of tokens to text, one token at a time: a character appears when its last byte has come."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        """`piece` gives the bytes of an id."""
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token, often empty. Invalid bytes become U+FFFD."""
        return self._decoder.decode(self._piece(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was not completed."""
        return self._decoder.decode(b"", final=True)


def build_tokenizer(metadata: Metadata, *, pre: str | None = None) -> Tokenizer:
    """The tokenizer of a file; `pre` names a pre-tokenizer to use in place of the file's.

    Raises UnsupportedModelError for another kind of tokenizer or pre-tokenizer, OptionError for a wrong
    `pre`, and GGUFError when the vocabulary contradicts itself.
    """
    model = metadata.string(MODEL_KEY)
    if model == "llama":
        if pre is not None:
            raise OptionError(
                f"{metadata.path} has a SentencePiece tokenizer, for which there is no pre-tokenizer {pre!r}."
            )
        vocabulary = read_vocabulary(metadata, _SPM_IDS)
        encoder = _Encoder(
            build_spm(metadata, vocabulary),
            byte_level=False,
            space_prefix=metadata.boolean("tokenizer.ggml.add_space_prefix", True),
            add_bos=_add_bos(metadata, vocabulary, default=True),
        )
    elif model in ("gpt2", "gemma4"):
        if model == "gemma4" and pre is None:
            found = PRE_TOKENIZERS["gemma4"]
        else:
            found = find_pre_tokenizer(metadata, pre)
        vocabulary = read_vocabulary(metadata, {})
        encoder = _Encoder(
            build_bpe(metadata, vocabulary, found),
            byte_level=found.byte_level,
            space_prefix=False,
            add_bos=_add_bos(metadata, vocabulary, default=found.add_bos, forced=found.force_bos),
        )
    else:
        raise UnsupportedModelError(
            f"{metadata.path}: {MODEL_KEY} is {model[:80]!r}; only llama, gpt2 and gemma4 are implemented."
        )
    return Tokenizer(metadata, vocabulary, encoder)


def _add_bos(metadata: Metadata, vocabulary: Vocabulary, *, default: bool, forced: bool = False) -> bool:
    if vocabulary.special_ids["bos"] is not None:
        return forced or metadata.boolean(ADD_BOS_KEY, default)
    if metadata.boolean(ADD_BOS_KEY, False):
        raise GGUFError(
            f"{metadata.path}: {ADD_BOS_KEY} is true, but the file names no BOS token "
            "(tokenizer.ggml.bos_token_id); it was converted wrongly: convert or download it again."
        )
    return False


def _suppressed_ids(metadata: Metadata, n_vocab: int) -> frozenset[int]:
    ids = metadata.integers("tokenizer.ggml.suppress_tokens", None)
    return frozenset() if ids is None else frozenset(i for i in ids.tolist() if 0 <= i < n_vocab)


def _space_swallowers(metadata: Metadata, vocabulary: Vocabulary) -> frozenset[int]:
    """Phi-3's special tokens take the whitespace behind them along; only the model's name tells."""
    name = metadata.string("general.name", "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    kept = {vocabulary.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    return frozenset(range(len(vocabulary.tokens))) - kept


def _check_text(text: str) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise OptionError(
            f"The text is not Unicode: character {error.start} is the lone surrogate {text[error.start]!a}; "
            "decode the bytes it comes from with errors='replace'."
        ) from None
    if length > MAX_TEXT_LENGTH:
        raise OptionError(
            f"The text has {length} bytes of UTF-8, but at most {MAX_TEXT_LENGTH} can be read; shorten it."
        )
