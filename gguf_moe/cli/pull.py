"""gguf-moe pull: download a model from Hugging Face's hub."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from gguf_moe.cli.common import ProgressLine
from gguf_moe.hub.names import size

if TYPE_CHECKING:
    from gguf_moe.hub.download import Pull


@click.command(short_help="Download a model from Hugging Face's hub.")
@click.argument("name", metavar="hf:REPO[:QUANT]")
@click.option("--offline", is_flag=True, help="Never connect; only say where the cache has it.")
def pull(name: str, offline: bool) -> None:
    """Download a model's GGUF file, or all parts of it, and print where it lies.

    hf:REPO takes Q4_K_M if it is there; hf:REPO/FILE.gguf is one file. It goes into the cache of
    huggingface_hub, and -m hf:REPO[:QUANT] of every command finds it there. Pulled again after an
    interruption, it goes on where it ended. HF_TOKEN, HF_HOME and HF_ENDPOINT count, as always there.
    """
    from gguf_moe.hub.cache import cached, hub_module
    from gguf_moe.hub.download import Pull
    from gguf_moe.hub.names import parse_name

    parsed = parse_name(name)
    if offline:
        click.echo(str(cached(parsed)))
        return
    utils = hub_module("utils")
    utils.disable_progress_bars()  # there is a line of our own
    utils.logging.set_verbosity_error()
    wanted = Pull(parsed)
    click.echo(_summary(wanted), err=True)
    line = DownloadLine(wanted.nbytes_here)
    try:
        path = wanted.run(line)
    finally:
        line.clear()
    click.echo(str(path))


def _summary(wanted: Pull) -> str:
    first, *others = wanted.files
    parts = f" and {len(others)} more {'parts' if len(others) > 1 else 'part'}" if others else ""
    here = wanted.nbytes_here
    already = ""
    if here:
        already = f", {'all' if here == wanted.nbytes else size(here)} of it here already"
    return f"{first.path}{parts}: {size(wanted.nbytes)}{already}"


class DownloadLine(ProgressLine):
    """The progress line with bytes, speed and the time that is left. n_before: bytes of earlier downloads."""

    def __init__(self, n_before: int):
        super().__init__()
        self._start, self._n_before = time.monotonic(), n_before

    def amount(self, stage: str, done: int, total: int) -> str:
        text = f"{size(done)} of {size(total)}"
        rate = max(0, done - self._n_before) / max(time.monotonic() - self._start, 1e-3)
        if stage != "downloading" or not rate:
            return text
        left = int((total - done) / rate)
        return f"{text}, {size(rate)}/s, {left // 60}:{left % 60:02d} left"
