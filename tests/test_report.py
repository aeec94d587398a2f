"""What `inspect` says about files that do not run here: everything that is missing, one sentence each."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFWriter
from tiny_models import write_tiny

from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.cli import cli
from gguf_moe.report import inspect_file


@pytest.fixture
def write(tmp_path):
    """write(arch, key=value, ...): a file without tensors; dots in a key are two underscores."""

    def make(arch, **keys):
        path = tmp_path / "model.gguf"
        writer = GGUFWriter(path, arch)
        for key, value in keys.items():
            writer.add_string(key.replace("__", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return make


@pytest.mark.parametrize("arch", ["glm4moe", "phimoe"])
def test_a_supported_file_has_no_problems(tmp_path, arch):
    report = inspect_file(write_tiny(arch, tmp_path / "model.gguf"))
    assert report.problems == []
    assert report.architecture == arch
    assert list(report.kv_bytes) == [512]


@pytest.mark.parametrize("arch", ["glm4moe", "deepseek2", "qwen35moe"])
def test_layers_that_guess_further_tokens_are_said_to_be_skipped(tmp_path, arch):
    path = write_tiny(arch, tmp_path / "model.gguf")
    with open_checkpoint(path) as checkpoint:
        last = int(checkpoint.metadata.arch.integer("block_count")) - 1
        sizes = [t.nbytes for t in checkpoint.tensors.values() if t.name.startswith(f"blk.{last}.")]
    skipped = [group for group in inspect_file(path).groups if group.role == "NextN, not used"]
    assert sum(group.n_tensors for group in skipped) == len(sizes)
    assert sum(group.nbytes for group in skipped) == sum(sizes)
    assert "NextN, not used" in CliRunner().invoke(cli, ["inspect", str(path)]).stdout


def test_an_unknown_architecture_with_all_that_is_missing(write):
    problems = inspect_file(write("gemma9", tokenizer__ggml__model="xyz")).problems
    assert len(problems) == 2
    assert "'gemma9' is not supported (the nearest is " in problems[0]
    assert "tokenizer.ggml.model is 'xyz'" in problems[1]


def test_types_without_kernels_are_named_whatever_the_architecture(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "gemma9")
    for name in ("a", "b"):
        writer.add_tensor(name, np.zeros(32, np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "no kernels here for the types I32 (2 tensors)" in inspect_file(path).problems[1]


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_that_is_no_model_is_called_by_its_kind(write, kind):
    assert (
        f"no language model, as general.type is '{kind}'"
        in inspect_file(write("llama", general__type=kind)).problems[0]
    )


def test_the_command_prints_each_problem(write):
    path = write("gemma9", tokenizer__ggml__model="xyz")
    lines = CliRunner().invoke(cli, ["inspect", str(path)]).stdout.splitlines()
    at = lines.index("does not run here:")
    assert len(lines) == at + 3
    report = json.loads(CliRunner().invoke(cli, ["inspect", str(path), "--json"]).stdout)
    assert report["runs"] is False
    assert [f"  {problem}" for problem in report["problems"]] == lines[at + 1 :]
