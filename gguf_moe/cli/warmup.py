"""gguf-moe warmup: compile everything that a file needs, so that its first use starts at once."""

from __future__ import annotations

from typing import Any

import click

from gguf_moe.cli.common import ProgressLine, load, model_option, runtime_options
from gguf_moe.errors import OptionError


@click.command()
@model_option
@runtime_options
def warmup(path: str, runtime: dict[str, Any]) -> None:
    """Compile and cache every kernel that FILE needs."""
    with load(path, runtime, ProgressLine()) as model:
        times = model.load_times
        click.echo(f"compiled {times.n_compiled} kernels in {times.compile_s:.1f} s", err=True)
        if times.n_compiled and not times.is_kept:
            raise OptionError("no cache directory keeps the kernels; choose another one with --cache-dir.")
