"""The options that say what an output must be, by llama.cpp's names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gguf_moe.cli.common import read_file

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def constraint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of constrained output; they arrive as arguments of Model.generate, `constraint`."""
    options: tuple[Callable[..., Any], ...] = (
        click.option("-j", "--json-schema", metavar="SCHEMA", help="Write JSON that fits; {} for any JSON."),
        click.option("-jf", "--json-schema-file", type=_FILE, help="The same from a file."),
        click.option("--grammar", metavar="RULES", help="Write what fits a GBNF or Lark grammar."),
        click.option("--grammar-file", type=_FILE, help="The same from a file."),
        click.option("--regex", metavar="REGEX", help="Write what matches as a whole."),
    )

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        constraint = {name: arguments.pop(name) for name in ("json_schema", "grammar", "regex")}
        for name in ("json_schema", "grammar"):
            path = arguments.pop(f"{name}_file")
            if path is None:
                continue
            if constraint[name] is not None:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"Give {option} or {option}-file, not both.")
            constraint[name] = read_file(path)
        return command(constraint=constraint, **arguments)

    result: Callable[..., Any] = wrapped
    for option in reversed(options):
        result = option(result)
    return result
