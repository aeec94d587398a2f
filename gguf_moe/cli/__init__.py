"""The command line: parse, call, print. Here errors become exit codes, and here alone the environment counts.

Only results go to stdout; progress, notes and the final line go to stderr.
Exit codes: 0 done, 1 an error of ours, 2 wrong usage, 130 interrupted (__main__.py).
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn, TextIO

import click

import gguf_moe
from gguf_moe.cli import bench, chat, evaluate, generate, inspect, plan, pull, serve, text, warmup
from gguf_moe.errors import GGUFMoeError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(gguf_moe.__version__, prog_name="gguf-moe")
def cli() -> None:
    """Run quantized GGUF mixture-of-experts models."""


for command in (
    generate.generate,
    chat.chat,
    text.tokenize,
    text.detokenize,
    inspect.inspect,
    plan.plan,
    pull.pull,
    evaluate.perplexity,
    evaluate.logits,
    bench.bench,
    serve.serve,
    warmup.warmup,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Ctrl-C is a KeyboardInterrupt."""
    _open_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        cli.main(prog_name="gguf-moe", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        _drop(sys.stdout)  # the reader has gone (`| head`)
        sys.exit(1)
    except GGUFMoeError as e:
        _fail(str(e))
    except OSError as e:
        _drop(sys.stdout)  # it may be what cannot be written
        _fail(f"{e.filename or 'the output'} cannot be read or written ({e.strerror or e}).")
    except MemoryError:
        _fail("out of memory; use a smaller context (--ctx) or a smaller model.")


def _open_streams() -> None:
    """What the caller closed is empty or thrown away; text that the locale cannot write becomes `?`."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _fail(message: str) -> NoReturn:
    try:
        click.echo(f"Error: {message}", err=True)
    except OSError:
        _drop(sys.stderr)
    sys.exit(1)


def _drop(stream: TextIO) -> None:
    """Point a stream elsewhere, or the interpreter ends by a code of its own for what it could not write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
