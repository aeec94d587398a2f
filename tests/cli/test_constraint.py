"""The options of constrained output, as far as a model need not run."""

import pytest
from click.testing import CliRunner

from gguf_moe.cli import cli


@pytest.mark.parametrize("name", ["json-schema", "grammar"])
def test_a_text_and_a_file_exclude_each_other(tmp_path, name):
    path = tmp_path / "given"
    path.write_text("{}")
    done = CliRunner().invoke(cli, ["generate", "Hi", f"--{name}", "{}", f"--{name}-file", str(path)])
    assert done.exit_code == 2
    assert f"--{name} or --{name}-file, not both" in done.output
