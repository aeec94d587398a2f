"""What the commands share: options for loading a model, the progress line, reading of prompts."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.errors import OptionError
from gguf_moe.options import KV_TYPES

if TYPE_CHECKING:
    from gguf_moe.model import Model

MAX_PROMPT_BYTES = 64 << 20
"""Of a text that is read whole."""
DEMO_MODEL = Path(__file__).parents[1] / "models" / "demo.gguf"
"""What a command runs that can do without -m."""


class CacheDir(click.Path):
    """A directory, which may not be there yet."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the name is empty; give a directory, or leave the option out.", param, ctx)
        return super().convert(value, param, ctx)


model_option = click.option(
    "-m",
    "--model",
    "path",
    required=True,
    metavar="FILE",
    help="GGUF file, any part of a split one, or hf:REPO[:QUANT] once it is pulled.",
)
model_or_demo_option = click.option(
    "-m", "--model", "path", metavar="FILE", help="GGUF file, or hf:REPO[:QUANT].  [default: the demo model]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
pre_tokenizer_option = click.option(
    "--pre-tokenizer", metavar="NAME", help="Override the file's tokenizer.ggml.pre."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
vram_option = click.option(
    "--vram", metavar="SIZE", help="GPU memory to use: 12G, 8000M or 0.5.  [default: what is free]"
)
policy_option = click.option(
    "--policy",
    default="decayed",
    show_default=True,
    help="Which experts the GPU keeps: decayed, lru, s3-fifo, fifo or static.",
)
kv_option = click.option(
    "--kv",
    "kv_type",
    type=click.Choice(KV_TYPES),
    help="Type of the KV cache.  [default: f16; f32 for F32 files]",
)
no_mmap_option = click.option(
    "--no-mmap", is_flag=True, help="Read the file into memory instead of mapping it."
)
cache_dir_option = click.option(
    "--cache-dir",
    type=CacheDir(),
    envvar="GGUF_MOE_CACHE_DIR",
    help="Where compiled kernels are kept.  [env: GGUF_MOE_CACHE_DIR]",
)


class NewFile(click.Path):
    """A file that a command writes at its end: that it can be made there is seen before the work."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Path = super().convert(value, param, ctx)  # type: ignore[assignment]
        if not os.access(path.parent, os.W_OK) or not path.parent.is_dir():
            self.fail(f"nothing can be written into the directory {str(path.parent)!r}.", param, ctx)
        return path


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command with a running model has; they arrive as one dict, `runtime`."""
    options: tuple[Callable[..., Any], ...] = (
        click.option(
            "--ctx", "n_ctx", type=click.IntRange(1), help="Context, in tokens.  [default: the file's]"
        ),
        click.option("-t", "--threads", type=click.IntRange(1), help="CPU threads.  [default: cores]"),
        device_option,
        vram_option,
        policy_option,
        kv_option,
        no_mmap_option,
        pre_tokenizer_option,
        cache_dir_option,
    )
    names = (
        "n_ctx",
        "threads",
        "device",
        "vram",
        "policy",
        "kv_type",
        "no_mmap",
        "pre_tokenizer",
        "cache_dir",
    )

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        runtime = {name: arguments.pop(name) for name in names}
        runtime["mmap"] = not runtime.pop("no_mmap")
        if runtime["cache_dir"] is None:
            del runtime["cache_dir"]
        return command(runtime=runtime, **arguments)

    result: Callable[..., Any] = wrapped
    for option in reversed(options):
        result = option(result)
    return result


def runtime_cache_dir(runtime: dict[str, Any]) -> Path | None:
    """Where a command keeps compiled kernels and measurements."""
    from gguf_moe.options import default_cache_dir

    return runtime.get("cache_dir") or default_cache_dir()


def load(path: str, runtime: dict[str, Any], progress: ProgressLine) -> Model:
    """Load a model with the progress line; what has to be compiled for it, all cores compile."""
    from gguf_moe.cli.workers import fill_cache
    from gguf_moe.model import Model
    from gguf_moe.options import Options

    model = Model(path, Options(**runtime), progress, fill_cache)
    progress.clear()
    return model


STAGES = {
    "reading": "reading the file",
    "compiling": "compiling kernels (once)",
    "prompt": "prompt",
    "measuring": "measuring",
    "downloading": "downloading",
    "checking": "checking",
}
REDRAW_S = 0.1


class ProgressLine:
    """One line on stderr that is rewritten in place; nothing at all if stderr is not a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._shown = False
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._on or (now - self._last < REDRAW_S and stage != "compiling"):
            return
        self._last = now
        click.echo(f"\r\x1b[K{STAGES[stage]} {self.amount(stage, done, total)}", nl=False, err=True)
        self._shown = True

    def amount(self, stage: str, done: int, total: int) -> str:
        """How much of a stage is done."""
        return f"{done}/{total}" if stage != "reading" else f"{done / 2**30:.1f}/{total / 2**30:.1f} GiB"

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
        self._shown = False
        self._last = 0.0


def read_text(text: str | None) -> str:
    """A text argument; `-` reads stdin. Raises OptionError for too much, or for bytes that are not UTF-8."""
    if text != "-":
        return text or ""
    return _checked_text(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin")


def read_file(path: Path) -> str:
    """The text of a file. Raises OptionError if it cannot be read, has too much, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as e:
        raise OptionError(f"{path} cannot be read ({e.strerror}); check the path and its permissions.") from e
    return _checked_text(data, str(path))


def _checked_text(data: bytes, name: str) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise OptionError(f"{name} has more than {MAX_PROMPT_BYTES >> 20} MiB; give a shorter text.")
    return decode_utf8(data, name)


def decode_utf8(data: bytes, name: str) -> str:
    """Bytes of a named source as text. Raises OptionError."""
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise OptionError(f"{name} is not UTF-8 (byte {e.start}); convert it first.") from None


def print_json(value: Any) -> None:
    """One JSON object on stdout, as UTF-8."""
    click.echo(json.dumps(value, ensure_ascii=False))
