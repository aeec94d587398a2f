"""Small vocabularies of each kind, for the tiny files of tiny_models.py."""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGUFWriter, TokenType

from gguf_moe.text.bpe import byte_level_alphabet

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
MERGES = (
    "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "ĊĊ Ċ", "ĉ Ċ", "Ċ Ġ", "3 3", "33 3", "333 33", "' l", "'l l", "' m", "' t", "h e",
    "l l", "Ġ t", "Ġt h", "i n", "e r", "a n", "o n", "r e", "Ġ a", "Ġ w", "H e", "He ll", "Hell o", "! !",
    "= =", ". .", "Ġ ðŁ", "ð Ł",
)  # fmt: skip
PIECES = (
    "▁", "▁▁", *"etaoinshrdlucmfwygpbvk", "▁t", "he", "in", "er", "an", "re", "on", "ll", "▁the", "▁a",
    "Hello",
)  # fmt: skip


def add_vocabulary(writer: GGUFWriter, pre: str) -> int:
    """The kind of vocabulary that Tiny.pre stands for; how many tokens it has."""
    if not pre:
        return add_spm(writer, PIECES)
    return _add_gemma4(writer) if pre == "gemma4" else _add_bpe(writer, pre)


def _add_bpe(writer: GGUFWriter, pre: str) -> int:
    """All bytes, some merges that cross the borders which pre-tokenizers draw, and special tokens."""
    made = ["".join(merge.split(" ")) for merge in MERGES]
    tokens = [*byte_level_alphabet(), *made, *SPECIAL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    n_normal = len(tokens) - len(SPECIAL)
    writer.add_token_types([TokenType.NORMAL] * n_normal + [TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(n_normal)
    writer.add_eos_token_id(n_normal)
    writer.add_add_bos_token(False)
    return len(tokens)


def add_spm(writer: GGUFWriter, pieces: Sequence[str]) -> int:
    """SentencePiece: three specials, all bytes, and the pieces, likely ones first; how many tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    special = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(pieces))])
    writer.add_token_types(special + [TokenType.NORMAL] * len(pieces))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(tokens)


def _add_gemma4(writer: GGUFWriter) -> int:
    """Merges as in a byte-level vocabulary, but of text with U+2581 for a space; all bytes, and letters."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    merges = [
        merge.replace("\u0120", "\u2581").replace("\u010a", "\n")
        for merge in MERGES
        if merge.isascii() or "\u00f0" not in merge
    ]
    made = ["".join(merge.split(" ")) for merge in merges]
    letters = sorted({letter for token in (*made, *PIECES) for letter in token})
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *made]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    n_normal = len(letters) + len(made)
    types = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN] + [TokenType.BYTE] * 256
    writer.add_token_types(types + [TokenType.NORMAL] * n_normal)
    writer.add_token_merges(merges)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    return len(tokens)
