#!/usr/bin/env python3
"""Write docs/models.md from what the tests of the architectures say when they are run.

  python scripts/models_table.py [--gpu-results FILE]

Runs tests/test_architectures.py and tests/runtime/gpu/test_every_architecture.py in this environment. A cell
is "yes" when all its tests have passed. Where there is no GPU, what ran on the emulated one is "emulated".
FILE has the results of a machine with a GPU:

  python -m pytest -m gpu tests/runtime/gpu/test_every_architecture.py -o junit_family=xunit1 --junit-xml=FILE
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from pretokenizer_table import DIFFERENCES
from tiny_table import TINY, arch_of

from gguf_moe import arch as architectures

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_architectures.py", "tests/runtime/gpu/test_every_architecture.py")
TABLE = ROOT / "docs" / "models.md"

HEAD = """\
# Models

The values of `general.architecture` that run here, and what the tests say about each; one whose files have
two forms has two lines.
This page is written by `python scripts/models_table.py` from the results of `tests/test_architectures.py` and
`tests/runtime/gpu/test_every_architecture.py`; do not edit it.

Each architecture has a tiny file with random weights (`scripts/tiny_models.py`), in which all that its files
may have is switched on. llama.cpp's outputs for it are stored in `tests/fixtures/architectures`.

* **tokens**: the token ids of llama.cpp's own test texts are llama.cpp's
* **parity**: NMSE of the logits of 64 tokens against llama.cpp's, F32 weights and F32 KV cache; at most 1e-6
* **greedy**: three greedy texts of 64 tokens are llama.cpp's
* **quantized**: mean KL to the F32 truth over 2,048 positions, divided by llama.cpp's; at most 1.25
* **prefill = decode**: the same bits token by token, in chunks and at once, and for any number of threads
* **CPU**: the kernels give the bits of the numpy reference
* **GPU**: parity as above with three of each layer's experts in GPU memory and the others computed by the
  CPU, in chunks and token by token; emulated: there was no device, the kernels were compiled for the CPU

"""
COLUMNS = {
    "tokens": "test_token_ids",
    "parity": "test_f32_logits_are_llama_cpps",
    "greedy": "test_f32_greedy_text_is_llama_cpps",
    "quantized": "test_quantized_logits_are_as_close_to_the_truth_as_llama_cpps",
    "prefill = decode": "test_prefill_in_chunks_is_step_by_step",
    "CPU": "test_the_oracle_gives_the_crews_bits",
}
PRE_TOKENIZERS = """
## Pre-tokenizers

Each name of `tokenizer.ggml.pre` that llama.cpp knows is compared with it on 65 hard texts
(`tests/text/data/pretokenizers.inp`): scripts, combining marks, emoji, digits, contractions, spaces, code.
The ids of these names differ in some of the texts. Ours are those of the models' own tokenizers, whose
regular expressions llama.cpp's engine only approximates:

| names | texts | in llama.cpp |
| --- | --- | --- |
"""
GPU_TEST = "test_logits_are_llama_cpps"


@dataclass
class Cell:
    """The tests of one kind with one tiny file."""

    passed: list[bool] = field(default_factory=list)
    is_skipped: bool = False
    measured: str = ""

    def __str__(self) -> str:
        if not self.passed or not all(self.passed):
            return "**no**"
        return self.measured or "yes"


def run_tests() -> ET.Element:
    """The results as pytest writes them for JUnit."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "results.xml"
        # The older form of the file can hold what a test has measured.
        options = ["-q", "-m", "", "-o", "junit_family=xunit1", f"--junit-xml={path}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *TESTS], cwd=ROOT, check=False)
        return ET.parse(path).getroot()


def cells(results: ET.Element) -> dict[tuple[str, str], Cell]:
    """(tiny file, test function) -> its results; a function that has devices ends with the device's name."""
    by_length = sorted(TINY, key=len, reverse=True)  # one name may begin with another
    found: dict[tuple[str, str], Cell] = {}
    for case in results.iter("testcase"):
        match = re.fullmatch(r"(\w+\[(?:emulator|gpu)?)-?(.+)\]", case.get("name", ""))
        if not match:
            continue
        file = next((name for name in by_length if match[2] == name or match[2].startswith(f"{name}-")), None)
        if file is None:
            continue
        cell = found.setdefault((file, match[1].replace("[", " ").strip()), Cell())
        cell.passed.append(not any(case.findall(kind) for kind in ("failure", "error", "skipped")))
        cell.is_skipped |= case.find("skipped") is not None
        for measured in case.iter("property"):
            number = float(measured.get("value", "nan"))
            cell.measured = f"{number:.0e}" if measured.get("name") == "nmse" else f"{number:.2f}"
    return found


def models_of(arch: str) -> str:
    """The models that an architecture's file names in its first sentence."""
    module = getattr(architectures, arch.replace("-", "_"))
    first = (inspect.getdoc(module) or "").partition("\n")[0]
    return first.partition(": ")[2].partition(". ")[0].removesuffix(".")


def on_gpu(found: dict[tuple[str, str], Cell], file: str) -> str:
    """The cell of a tiny file: what a device says or, where there is none, the emulated one."""
    device, emulated = (found.get((file, f"{GPU_TEST} {name}"), Cell()) for name in ("gpu", "emulator"))
    if device.passed and not device.is_skipped:
        return str(device)
    return "emulated" if str(emulated) == "yes" else str(emulated)


def table(found: dict[tuple[str, str], Cell]) -> str:
    rows = [["architecture", "models", *COLUMNS, "GPU"]]
    rows.append(["---"] * len(rows[0]))
    for file in sorted(TINY):
        tests = [str(found.get((file, test), Cell())) for test in COLUMNS.values()]
        arch, form = arch_of(file), TINY[file].form
        models = f"{form} {models_of(arch)}" if form else models_of(arch)
        rows.append([f"`{arch}`", models, *tests, on_gpu(found, file)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def pre_tokenizers() -> str:
    """The section about those that differ from llama.cpp's."""
    rows = [
        (", ".join(f"`{name}`" for name in row.names.split()), str(row.n_texts), "; ".join(row.llama_cpp))
        for row in DIFFERENCES
    ]
    return PRE_TOKENIZERS + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-results", type=Path, metavar="FILE", help="of a machine with a GPU")
    args = parser.parse_args()
    found = cells(run_tests())
    if args.gpu_results:
        found |= cells(ET.parse(args.gpu_results).getroot())
    TABLE.write_text(HEAD + table(found) + pre_tokenizers(), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
