"""Which tokens end a generation."""

import pytest

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = range(1, 5)


def ends(tokenizer, values):
    return {values["tokenizer.ggml.tokens"][i] for i in tokenizer.eog_ids}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("<|im_start|> <|im_end|> <|endoftext|>", "<|im_end|> <|endoftext|>"),
        ("<|eot_id|> <|eom_id|> <|python_tag|>", "<|eot_id|> <|eom_id|>"),
        ("<start_of_turn> <end_of_turn>", "<end_of_turn>"),
        ("[EOS] [EOT] [BOS]", "[EOS] [EOT]"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        # Fill-in-the-middle: padding, repository and file separators end, the parts of the text do not.
        ("<|fim_prefix|> <|fim_pad|> <|repo_name|> <|file_sep|>", "<|fim_pad|> <|repo_name|> <|file_sep|>"),
        # gpt-oss: <|end|> only ends a message. Without <|return|> and <|call|> it ends the generation.
        ("<|end|> <|return|> <|call|> <|start|>", "<|return|> <|call|>"),
        ("<|end|> <|call|>", "<|end|> <|call|>"),
        ("<|end|> <|calls|> <|flush|>", "<|calls|> <|flush|>"),
        # gemma4: </s> is a token of text.
        ("</s> <|tool_response>", "<|tool_response>"),
        ("</s>", "</s>"),
    ],
)
def test_by_text(tokenizer_of, bpe_values, texts, expected):
    values = bpe_values(*((text, CONTROL) for text in texts.split()))
    assert ends(tokenizer_of(values), values) == set(expected.split())


def test_by_id(tokenizer_of, bpe_values):
    values = bpe_values(("stop", NORMAL), eos_token_id=259, eot_token_id=4, eom_token_id=5)
    assert tokenizer_of(values).eog_ids == {259, 4, 5}


def test_without_any(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values())
    assert tokenizer.eog_ids == frozenset()
    assert tokenizer.eos_id is None


def test_the_text_of_an_end_token_makes_it_a_control_token(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("<|im_end|>", NORMAL)))
    assert tokenizer.is_control(tokenizer.n_vocab - 1)
    assert tokenizer.eot_id == tokenizer.n_vocab - 1
    assert tokenizer.encode("<|im_end|>") == [tokenizer.n_vocab - 1]


def test_the_parts_of_a_harmony_answer_are_shown(tokenizer_of, bpe_values):
    texts = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"]
    tokenizer = tokenizer_of(bpe_values(*((text, CONTROL) for text in texts)))
    ids = tokenizer.encode("".join(texts))
    assert tokenizer.decode(ids, special=False) == "<|channel|><|message|><|start|><|constrain|><|end|>"
    assert tokenizer.eot_id is None


def test_s_is_text_in_gemma4(tokenizer_of, bpe_values):
    tokenizer = tokenizer_of(bpe_values(("</s>", CONTROL), ("<|tool_response>", CONTROL)))
    assert tokenizer.decode(tokenizer.encode("</s>", special=False), special=False) == "</s>"
    assert not tokenizer.is_control(tokenizer.n_vocab - 2)
