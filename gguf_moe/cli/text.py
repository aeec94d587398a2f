"""gguf-moe tokenize and detokenize: the tokenizer alone; the file needs no weights."""

from __future__ import annotations

import click

import gguf_moe
from gguf_moe.cli.common import json_option, model_option, pre_tokenizer_option, print_json, read_text
from gguf_moe.errors import OptionError


@click.command(short_help="Print the token ids of TEXT.")
@click.argument("text")
@model_option
@click.option("--special/--no-special", default=True, show_default=True, help="Read control tokens in TEXT.")
@click.option("--bos/--no-bos", default=None, help="Begin with the BOS token.  [default: what the file says]")
@pre_tokenizer_option
@json_option
def tokenize(
    text: str, path: str, special: bool, bos: bool | None, pre_tokenizer: str | None, as_json: bool
) -> None:
    """Print the token ids of TEXT, one a line with its text. `-` reads stdin."""
    tokenizer = gguf_moe.load_tokenizer(path, pre_tokenizer=pre_tokenizer)
    ids = tokenizer.encode(read_text(text), bos=bos, special=special)
    if as_json:
        print_json({"token_ids": ids})
        return
    for token in ids:
        click.echo(f"{token:8d}  {tokenizer.token_bytes(token).decode(errors='backslashreplace')!r}")


@click.command(short_help="Print the text of token IDS.")
@click.argument("ids", nargs=-1)
@model_option
@click.option("--special/--no-special", default=True, show_default=True, help="Show control tokens.")
@json_option
def detokenize(ids: tuple[str, ...], path: str, special: bool, as_json: bool) -> None:
    """Print the text of token IDS (numbers, also separated by commas). `-` reads stdin."""
    tokenizer = gguf_moe.load_tokenizer(path)
    words = " ".join(read_text(word) for word in ids).replace(",", " ").replace("[", " ").replace("]", " ")
    numbers = []
    for word in words.split():
        if not word.isdecimal() or int(word) >= tokenizer.n_vocab:
            raise OptionError(f"{word!r} is not a token id of this model (0 to {tokenizer.n_vocab - 1}).")
        numbers.append(int(word))
    text = tokenizer.decode(numbers, special=special)
    if as_json:
        print_json({"text": text})
    else:
        click.echo(text)
