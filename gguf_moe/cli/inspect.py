"""gguf-moe inspect: what is in a file, and does it run here?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from gguf_moe.cli.common import json_option, print_json

if TYPE_CHECKING:
    from gguf_moe.report import Report

VALUE_WIDTH = 60


@click.command(short_help="Show what is in a file, and whether it runs here.")
@click.argument("path", metavar="FILE")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show a file's keys, its tensors by role and type, its memory needs, and whether it runs here."""
    from gguf_moe.report import inspect_file
    from gguf_moe.runtime.machine import available_memory

    report = inspect_file(path)
    if as_json:
        print_json(_as_dict(report, available_memory()))
        return
    for part in report.paths:
        click.echo(part)
    click.echo()
    for key, (type_name, value) in report.keys.items():
        click.echo(f"{key}  {type_name}{'' if value is None else '  ' + _one_line(value)}")
    click.echo(f"\n{'tensors':24}{'type':>8}{'number':>8}{'MiB':>12}")
    for group in report.groups:
        mib = group.nbytes / 2**20
        click.echo(f"{group.role:24}{group.qtype:>8}{group.n_tensors:>8}{mib:>12.1f}")
    click.echo(f"{'file':24}{'':>16}{report.nbytes / 2**20:>12.1f}")
    for n_ctx, size in report.kv_bytes.items():
        click.echo(f"{f'KV cache, {n_ctx} tokens':24}{'':>16}{size / 2**20:>12.1f}")
    click.echo(f"{'memory available':24}{'':>16}{available_memory() / 2**20:>12.1f}")
    click.echo("\ndoes not run here:" if report.problems else "\nruns here")
    for problem in report.problems:
        click.echo(f"  {problem}")


def _one_line(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else str(value)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 3] + "..."


def _as_dict(report: Report, available: int) -> dict[str, Any]:
    return {
        "files": [str(path) for path in report.paths],
        "file_bytes": report.nbytes,
        "architecture": report.architecture,
        "keys": {
            key: {"type": type_name, "value": _plain(value)}
            for key, (type_name, value) in report.keys.items()
        },
        "tensors": [
            {"role": g.role, "type": g.qtype, "number": g.n_tensors, "bytes": g.nbytes} for g in report.groups
        ],
        "kv_cache_bytes": {str(n): size for n, size in report.kv_bytes.items()},
        "available_memory_bytes": available,
        "runs": not report.problems,
        "problems": report.problems,
    }


def _plain(value: object) -> object:
    """JSON has no NaN and no infinities."""
    if isinstance(value, float) and value * 0 != 0:
        return str(value)
    return value
