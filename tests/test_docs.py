"""The documentation is true: commands are as --help says, examples run, and links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import commands_reference
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_command_reference_is_what_help_says():
    remedy = "run python scripts/commands_reference.py"
    assert (ROOT / "docs" / "commands.md").read_text() == commands_reference.reference(), remedy


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_pages_name_exist(page):
    from gguf_moe.cli import cli

    for name, rest in re.findall(r"gguf-moe ([a-z]+)\b([^`#\n]*)", page.read_text()):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest))
        if used and name in cli.commands:
            options = {o for p in cli.commands[name].params for o in (*p.opts, *p.secondary_opts)}
            assert used <= options | {"--help"}, f"gguf-moe {name}{rest}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, kernel_cache, tmp_path):
    cache = tmp_path / ".cache" / "gguf-moe"
    cache.mkdir(parents=True)
    (cache / "kernels").symlink_to(kernel_cache)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, example], capture_output=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()
    assert done.stderr == b""


def test_every_script_is_listed():
    listed = (ROOT / "scripts" / "README.md").read_text()
    assert not [path.name for path in (ROOT / "scripts").glob("*.py") if path.name not in listed]
