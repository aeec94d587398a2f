"""gguf-moe bench: how fast is a file here, and how near to the limit of the machine's memory?"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.cli.common import (
    DEMO_MODEL,
    ProgressLine,
    cache_dir_option,
    device_option,
    json_option,
    kv_option,
    model_or_demo_option,
    no_mmap_option,
    policy_option,
    print_json,
    vram_option,
)
from gguf_moe.cli.usage import usage_line, usage_report
from gguf_moe.errors import OptionError

if TYPE_CHECKING:
    from gguf_moe.bench import Bench, BenchTest, Row

COLUMNS = (("size", 9), ("params", 7), ("threads", 7), ("test", 13), ("t/s", 14))
"""Heads and widths, behind the model's name; with two spaces between all they make 80 columns."""
MODEL_WIDTH = 20
MAX_TOKENS = 1 << 24
MAX_THREADS = 1024


class Counts(click.ParamType):
    """Whole numbers with commas between them, each from `least` to `most`."""

    name = "numbers"

    def __init__(self, least: int, most: int = MAX_TOKENS):
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        found = []
        for part in str(value).split(","):
            if not part.strip().isascii() or not part.strip().isdigit() or len(part.strip()) > 9:
                self.fail(f"{part!r} is not a whole number; give one, or several as 1,2,3.", param, ctx)
            if not self._least <= int(part) <= self._most:
                self.fail(f"{int(part)} must be from {self._least} to {self._most}.", param, ctx)
            found.append(int(part))
        return list(dict.fromkeys(found))


@click.command(short_help="Measure prompts and generation in tokens per second.")
@model_or_demo_option
@click.option("-p", "--n-prompt", type=Counts(0), default="512", show_default=True, help="Prompts; 0: none.")
@click.option("-n", "--n-gen", type=Counts(0), default="128", show_default=True, help="Tokens generated.")
@click.option("-d", "--n-depth", type=Counts(0), default="0", show_default=True, help="Tokens before these.")
@click.option("-t", "--threads", type=Counts(1, MAX_THREADS), help="CPU threads.  [default: cores]")
@click.option(
    "-r", "--repetitions", default=5, show_default=True, type=click.IntRange(1), help="Runs of each test."
)
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(1), help="Longest context, in tokens.  [default: the file's]"
)
@device_option
@vram_option
@policy_option
@click.option(
    "--routing", metavar="FILE", help="Send tokens to the experts of a trace (generate --record-routing)."
)
@kv_option
@no_mmap_option
@cache_dir_option
@json_option
def bench(
    path: str | None,
    n_prompt: list[int],
    n_gen: list[int],
    n_depth: list[int],
    threads: list[int] | None,
    repetitions: int,
    routing: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure prompts (pp) and generation (tg) in tokens per second, as llama-bench does.

    -p, -n, -d and -t take several numbers, as 32,128,512. For tg without a GPU, the weights read are compared
    with what as many threads can read from this machine's memory, measured before and after each test. With a
    GPU a line tells what its cache of experts did, how much of it went over the link, and which share of the
    time GPU and CPU worked.
    """
    from gguf_moe.bench import Bench
    from gguf_moe.options import Options

    if path is None:
        path = str(DEMO_MODEL)
        click.echo("No model was given (-m FILE): the demo model is measured, which is tiny.", err=True)
    options["mmap"] = not options.pop("no_mmap")
    if options["cache_dir"] is None:
        del options["cache_dir"]
    progress = ProgressLine()
    with Bench(path, Options(**options), progress, routing) as measured:
        tests = _tests(n_prompt, n_gen, n_depth, threads or [measured.default_threads])
        for test in tests:
            measured.check(test)
        rows = []
        if not as_json:
            progress.clear()
            _print_head()
        for test in tests:
            rows.append(measured.run(test, repetitions))
            progress.clear()
            if not as_json:
                _print_row(measured, rows[-1])
        if as_json:
            print_json(_report(measured, rows))


def _tests(n_prompt: list[int], n_gen: list[int], n_depth: list[int], threads: list[int]) -> list[BenchTest]:
    from gguf_moe.bench import BenchTest

    tests = []
    for n_threads in threads:
        for depth in n_depth:
            tests += [BenchTest(n_threads, n_prompt=n, n_depth=depth) for n in n_prompt if n]
            tests += [BenchTest(n_threads, n_gen=n, n_depth=depth) for n in n_gen if n]
    if not tests:
        raise OptionError("there is nothing to measure, as -p and -n are 0; give one of them a length.")
    return tests


def _print_head() -> None:
    _print_line("model", [head for head, _ in COLUMNS])


def _print_row(bench: Bench, row: Row) -> None:
    name = bench.path.stem
    test = row.test
    n_digits = 2 if row.mean < 100 else 1 if row.mean < 1000 else 0
    speed = f"{row.mean:.{n_digits}f} ± {row.deviation:.{n_digits}f}"
    size = f"{bench.nbytes / 2**30:.2f} GiB" if bench.nbytes >= 1 << 30 else f"{bench.nbytes / 2**20:.2f} MiB"
    _print_line(
        name if len(name) <= MODEL_WIDTH else name[: MODEL_WIDTH - 1] + "…",
        [size, _short(bench.n_params), str(test.n_threads), test.name, speed],
    )
    if row.usage:
        click.echo(f"{usage_line(row.usage):>80}")
    elif test.n_gen:
        weights, speed = f"{_short(row.bytes_per_token)}B", f"{row.bytes_per_second / 1e9:.1f} GB/s"
        limit = f"{statistics.fmean(row.bandwidths) / 1e9:.1f} GB/s"
        share = f"{100 * row.bandwidth_share:.0f} % of the {limit} that memory gives"
        click.echo(f"{f'{weights} of weights a token: {speed}, {share}':>80}")


def _print_line(model: str, cells: list[str]) -> None:
    padded = (f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    click.echo("  ".join((f"{model:{MODEL_WIDTH}}", *padded)))


def _short(n: int) -> str:
    """A number with the prefix of its size: 6.13 G."""
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.2f} {prefix}"
    return f"{n} "


def _report(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    """llama-bench's names where it has them."""
    return {
        "model_filename": str(bench.path),
        "architecture": bench.arch.name,
        "model_size": bench.nbytes,
        "model_n_params": bench.n_params,
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    test, (before, after) = row.test, row.bandwidths
    found: dict[str, Any] = {
        "test": test.name,
        "n_threads": test.n_threads,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "avg_ts": row.mean,
        "stddev_ts": row.deviation,
        "samples_ts": row.speeds,
        "read_bandwidth": {"before": before, "after": after},
    }
    if row.usage:
        found["gpu"] = usage_report(row.usage)
    if test.n_gen:
        found["weights_bytes_per_token"] = row.bytes_per_token
        found["weights_bytes_per_s"] = row.bytes_per_second
        found["share_of_read_bandwidth"] = row.bandwidth_share
    return found
