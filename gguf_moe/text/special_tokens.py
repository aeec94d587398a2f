"""Finding the special tokens in a text, before anything else looks at it."""

from __future__ import annotations

from collections.abc import Iterator

from gguf_moe.text.vocabulary import TokenType, Vocabulary

_CONTROL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)
_SPECIAL_TYPES = (*_CONTROL_TYPES, TokenType.USER_DEFINED)

_PREFIX_LENGTH = 3

_SPACES = " \t\n\v\f\r"  # what isspace() of the C locale accepts


class SpecialTokens:
    """Cuts texts at the control, unknown and user-defined tokens of a vocabulary.

    As in llama.cpp the longest token goes first and takes every occurrence in the whole text, then the next
    one looks at what is left; so it is not always the leftmost of two overlapping tokens that wins.
    """

    def __init__(self, vocabulary: Vocabulary, *, swallow_spaces: frozenset[int] = frozenset()) -> None:
        """`swallow_spaces` are the ids of the tokens that take the whitespace behind them along."""
        texts = [text for text, i in vocabulary.ids.items() if vocabulary.types[i] in _SPECIAL_TYPES]
        texts.sort(key=lambda text: (-len(text.encode()), vocabulary.ids[text]))
        self._order = {text: order for order, text in enumerate(texts)}
        self._ids = {text: vocabulary.ids[text] for text in texts}
        self._always = {text for text in texts if vocabulary.types[self._ids[text]] not in _CONTROL_TYPES}
        self._swallow_spaces = swallow_spaces
        # Some vocabularies have thousands of unused tokens: a text is searched for their beginnings first.
        self._by_prefix: dict[str, list[str]] = {}
        for text in texts:
            self._by_prefix.setdefault(text[:_PREFIX_LENGTH], []).append(text)

    def split(self, text: str, *, control: bool) -> list[str | int]:
        """Pieces of plain text, none of them empty, and ids; without `control` only user-defined ones."""
        pieces: list[str | int] = [text] if text else []
        for token in self._present(text, control):
            cut: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    cut.append(piece)
                else:
                    cut.extend(self._cut(piece, token))
            pieces = cut
        return pieces

    def _present(self, text: str, control: bool) -> list[str]:
        found = [
            token
            for prefix, tokens in self._by_prefix.items()
            if prefix in text
            for token in tokens
            if (control or token in self._always) and token in text
        ]
        return sorted(found, key=self._order.__getitem__)

    def _cut(self, piece: str, token: str) -> Iterator[str | int]:
        token_id = self._ids[token]
        for i, part in enumerate(piece.split(token)):
            if i:
                yield token_id
                if token_id in self._swallow_spaces:
                    part = part.lstrip(_SPACES)
            if part:
                yield part
