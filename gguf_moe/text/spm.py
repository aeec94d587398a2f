"""SentencePiece vocabularies: tokenizer.ggml.model is "llama". Tokens have scores, and there are no merges.

SentencePiece joins the two neighbours whose union is the token with the best score, again and again. That is
byte-pair encoding whose merges are all the ways to split a token into two, the best score first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import GGUFError
from gguf_moe.text.vocabulary import TOKENS_KEY, TokenType, Vocabulary, check_length

if TYPE_CHECKING:
    import tokenizers

SCORES_KEY = "tokenizer.ggml.scores"

MAX_VOCABULARY_LENGTH = 6_000_000
"""Characters of all tokens, each a place to split its token. Gemma's 262,144 tokens have 2 million."""


def build_spm(metadata: Metadata, vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Turns plain text without special tokens, spaces written as U+2581, into ids."""
    from tokenizers import Tokenizer, models

    unk = vocabulary.special_ids["unk"]
    unk_token = None if unk is None else vocabulary.tokens[unk]
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=_make_merges(metadata, vocabulary),
        unk_token=unk_token if unk_token in vocabulary.ids else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    return Tokenizer(model)


def _make_merges(metadata: Metadata, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    n_vocab = len(vocabulary.tokens)
    length = sum(map(len, vocabulary.tokens))
    if length > MAX_VOCABULARY_LENGTH:
        raise GGUFError(
            f"{metadata.path}: the {n_vocab} tokens of {TOKENS_KEY} have {length} characters together, but "
            f"at most {MAX_VOCABULARY_LENGTH} are allowed; the file is damaged or was made to do harm: "
            "download it again."
        )
    scores = metadata.numbers(SCORES_KEY, None)
    if scores is None:
        costs = [0.0] * n_vocab
    else:
        check_length(metadata, SCORES_KEY, len(scores), n_vocab)
        costs = (-scores.astype(float)).tolist()
    ids, types = vocabulary.ids, vocabulary.types
    found = []
    for text, token_id in ids.items():
        if types[token_id] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            cost = costs[token_id]
            for i in range(1, len(text)):
                left, right = text[:i], text[i:]
                if left in ids and right in ids:
                    found.append((cost, token_id, ids[left], ids[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
