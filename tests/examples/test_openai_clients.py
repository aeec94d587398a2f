"""examples/openai-clients against a server of the small chat model, where their packages are installed."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_moe
from gguf_moe.server.app import Settings
from tests.server.conftest import FIXTURE, serve

FOLDER = Path(__file__).parents[2] / "examples" / "openai-clients"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package"),
    [("langchain_chat.py", "langchain_openai"), ("llama_index_chat.py", "llama_index.llms.openai_like")],
)
def test_a_framework_streams_an_answer(script, package, kernel_cache):
    pytest.importorskip(package)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(gguf_moe.load(FIXTURE, threads=2, cache_dir=kernel_cache))
        url, worker = stack.enter_context(serve(model, Settings(), 8))
        command = [sys.executable, FOLDER / script, f"{url}/v1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert worker.scheduler.counts.n_generated_tokens > 0
