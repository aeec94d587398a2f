"""What a person gets who installs the project."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_import_is_light():
    loaded = run("import sys, gguf_moe; print(*sorted({m.split('.')[0] for m in sys.modules}))").split()
    assert not {"numba", "llvmlite", "cupy", "numpy", "gguf", "tokenizers", "jinja2"} & set(loaded)


def test_import_leaves_typing_out():
    """Until it is over, Ctrl-C shows a traceback."""
    program = "import sys; sys.modules.pop('typing', None); import gguf_moe; print('typing' in sys.modules)"
    assert run(program).strip() == "False"


def test_public_names_exist():
    out = run("import gguf_moe; print(all(getattr(gguf_moe, name) for name in gguf_moe.__all__))")
    assert out.strip() == "True"


def test_ci_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"^(pip install -e .*pytest)$", readme, re.MULTILINE)
    assert command, "README has no line that installs the project and runs the tests"
    assert command[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_lint_and_types():
    for check in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)):
        done = subprocess.run(
            [sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
