"""gguf-moe perplexity and logits: how good the numbers are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gguf_moe.cli.common import (
    NewFile,
    ProgressLine,
    json_option,
    load,
    model_option,
    print_json,
    read_file,
    read_text,
    runtime_options,
)
from gguf_moe.errors import GGUFMoeError
from gguf_moe.files import written_whole


@click.command(short_help="Perplexity of a text by llama.cpp's method.")
@model_option
@click.option("-f", "--file", "text_file", required=True, type=click.Path(path_type=Path), help="The text.")
@runtime_options
@json_option
def perplexity(path: str, text_file: Path, as_json: bool, runtime: dict[str, Any]) -> None:
    """Perplexity of a text by llama.cpp's method, in chunks of --ctx tokens (512 by default)."""
    from gguf_moe import evaluate

    text = read_file(text_file)
    runtime["n_ctx"] = runtime["n_ctx"] or 512
    progress = ProgressLine()

    def show(done: int, total: int, so_far: float) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[Kchunk {done}/{total}, perplexity {so_far:.4f}", nl=False, err=True)

    with load(path, runtime, progress) as model:
        result = evaluate.perplexity(model, text, runtime["n_ctx"], show)
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        print_json(
            {
                "perplexity": result.value,
                "error": result.error,
                "scored_tokens": result.n_scored,
                "chunks": result.n_chunks,
                "n_ctx": runtime["n_ctx"],
            }
        )
    else:
        click.echo(f"{result.value:.4f} +- {result.error:.4f}")
        click.echo(f"{result.n_scored} tokens scored in {result.n_chunks} chunks", err=True)


@click.command(short_help="Write the logits after every token of a text.")
@model_option
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="Text; `-` reads stdin.")
@click.option("--out", required=True, type=NewFile(), help="A .npy file.")
@runtime_options
def logits(path: str, prompt: str, out: Path, runtime: dict[str, Any]) -> None:
    """Write the logits after every token of a text: float32 [n_tokens, n_vocab]."""
    import numpy as np

    progress = ProgressLine()
    text = read_text(prompt)
    with load(path, runtime, progress) as model:
        values = model.logits(model.tokenize(text), progress)
    progress.clear()
    try:
        with written_whole(out) as file:
            np.save(file, values)
    except OSError as e:
        raise GGUFMoeError(f"{out} cannot be written ({e.strerror or e}); is there room for it?") from e
    click.echo(f"{out}: {values.shape[0]} tokens, {values.shape[1]} logits each", err=True)
