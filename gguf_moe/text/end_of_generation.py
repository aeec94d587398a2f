"""Which tokens end a generation, by their ids and by their texts.

Files rarely list all such tokens, so the text of a token decides as well. The rules and their exceptions
are those of llama.cpp (llama_vocab::impl::load in src/llama-vocab.cpp).
"""

from __future__ import annotations

from gguf_moe.text.vocabulary import TokenType, Vocabulary

# A role whose key is missing goes to the first of these texts that is a token, which is a control token then.
_TEXTS_OF_ROLE = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

_END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)

_END_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# The parts of an answer of gpt-oss (the harmony format) stand between these, so they must reach the reader.
_HARMONY_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def find_end_tokens(vocabulary: Vocabulary) -> frozenset[int]:
    """The ids that end a generation.

    Completes `special_ids` and corrects `types` of the vocabulary on the way: a token with the text of a
    control token is one, whatever the file says.
    """
    ids, types, special_ids = vocabulary.ids, vocabulary.types, vocabulary.special_ids
    ends = {text: ids[text] for text in _END_TEXTS if text in ids}
    for token_id in ends.values():
        types[token_id] = TokenType.CONTROL
    for text in _HARMONY_TEXTS:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    not_ends = _take_out_exceptions(ends, types)
    for role, texts in _TEXTS_OF_ROLE.items():
        if special_ids[role] is None:
            found = next((ids[text] for text in texts if text in ids and ids[text] not in not_ends), None)
            if found is not None:
                special_ids[role] = found
                types[found] = TokenType.CONTROL
    by_role = {special_ids[role] for role in _END_ROLES}
    return frozenset(i for i in by_role.union(ends.values()) if i is not None and i not in not_ends)


def _take_out_exceptions(ends: dict[str, int], types: list[int]) -> set[int]:
    """Take out of `ends` what only looks like an end of generation, and return the ids."""
    not_ends = set()
    called = "<|call|>" in ends or "<|calls|>" in ends
    if "<|end|>" in ends and called and ("<|return|>" in ends or "<|flush|>" in ends):  # harmony, solar-open
        types[ends["<|end|>"]] = TokenType.USER_DEFINED
        not_ends.add(ends.pop("<|end|>"))
    if "</s>" in ends and "<|tool_response>" in ends:  # gemma4
        types[ends["</s>"]] = TokenType.NORMAL
        not_ends.add(ends.pop("</s>"))
    return not_ends
