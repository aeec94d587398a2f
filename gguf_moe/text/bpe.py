"""Byte-pair encoding with the merges of the file: tokenizer.ggml.model is "gpt2" or "gemma4"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError
from gguf_moe.text.pretokenizers import PreTokenizer
from gguf_moe.text.vocabulary import TOKENS_KEY, Vocabulary

if TYPE_CHECKING:
    import tokenizers

MERGES_KEY = "tokenizer.ggml.merges"


def build_bpe(metadata: Metadata, vocabulary: Vocabulary, pre: PreTokenizer) -> tokenizers.Tokenizer:
    """Turns text without special tokens into ids. Raises GGUFError when merges and tokens disagree."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    merges = _read_merges(metadata)
    try:
        model = models.BPE(
            vocab=vocabulary.ids,
            merges=merges,
            ignore_merges=pre.ignore_merges,
            byte_fallback=not pre.byte_level,
        )
    except Exception:  # the library has no narrower type, and checking 300,000 good merges here is slow
        _find_wrong_merge(metadata, vocabulary)
        raise
    words = Tokenizer(model)
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns
    ]
    if pre.byte_level:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    words.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return words


def _read_merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges = []
    for merge in metadata.strings(MERGES_KEY):
        space = merge.find(" ", 1)  # a piece may begin with a space
        merges.append((merge[:space], merge[space + 1 :]))
    return list(dict.fromkeys(merges))  # of a pair that occurs twice the first counts


def _find_wrong_merge(metadata: Metadata, vocabulary: Vocabulary) -> None:
    ids = vocabulary.ids
    for i, merge in enumerate(metadata.strings(MERGES_KEY)):
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if not (left in ids and right in ids and left + right in ids):
            raise GGUFError(
                f"{metadata.path}: merge {i} of {MERGES_KEY} is {merge[:80]!r}, but must be two tokens of "
                f"{TOKENS_KEY} with a space between that make a third; the file is damaged or was converted "
                "wrongly: download or convert it again."
            )


def byte_level_alphabet() -> dict[str, int]:
    """The byte for each character of a byte-level token, as in GPT-2's encoder.py.

    The bytes that are visible in Latin-1 stand for themselves, the others follow from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
