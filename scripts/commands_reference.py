"""Write docs/commands.md: every command's --help. `python scripts/commands_reference.py`"""

from __future__ import annotations

from pathlib import Path

import click

from gguf_moe.cli import cli

DST = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 100
_HEAD = """# Commands

What `gguf-moe COMMAND --help` says. This page is written by `python scripts/commands_reference.py`.
"""


def reference() -> str:
    """The page."""
    pages = [_HEAD]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(
            command, info_name=f"gguf-moe {name}", terminal_width=WIDTH, help_option_names=["-h", "--help"]
        )
        pages.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(pages)


if __name__ == "__main__":
    DST.write_text(reference(), encoding="utf-8")
