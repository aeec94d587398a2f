"""Files for contexts."""

import pytest
import tiny_models


@pytest.fixture(scope="session")
def moe_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "moe.gguf")


@pytest.fixture(scope="session")
def dense_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "dense.gguf", n_expert=0, n_head_kv=1)


@pytest.fixture(scope="session")
def write_tiny():
    return tiny_models.write_tiny


@pytest.fixture(scope="session")
def recurrent_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "qwen3next.gguf"
    return tiny_models.write_tiny("qwen3next", path, quantized=True)


@pytest.fixture(scope="session")
def other_recurrent_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "qwen35moe.gguf"
    return tiny_models.write_tiny("qwen35moe", path, quantized=True)
