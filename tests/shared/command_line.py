"""What tests of the command line share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
PROMPT = "Once upon a time, in a village"
TIMEOUT = 120


def environment(kernel_cache):
    """Variables with which `python -m gguf_moe` is found, and finds its kernels; streams have buffers."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    others = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return others | {"GGUF_MOE_CACHE_DIR": str(kernel_cache), "PYTHONPATH": paths}


def generate(*extra):
    """The arguments of a short generation, always the same."""
    return ("generate", "-m", FIXTURE, "-n", "8", "--temp", "0", "-t", "2", *extra)
