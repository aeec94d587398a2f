"""Files for contexts."""

import pytest


@pytest.fixture(scope="session")
def moe_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "moe.gguf")


@pytest.fixture(scope="session")
def dense_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "dense.gguf", n_expert=0, n_head_kv=1)
