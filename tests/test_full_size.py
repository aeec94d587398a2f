"""scripts/full_size.py: models of true shapes and types, with blocks that behave like weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import full_size
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from random_blocks import N_BLOCKS, TYPES, RandomBlocks

import gguf_moe


@pytest.mark.parametrize("qtype", TYPES, ids=lambda qtype: qtype.name)
@pytest.mark.parametrize("rms", [1.0, 14336**-0.5])
def test_blocks_are_weights_of_the_size_asked_for(qtype: Type, rms: float) -> None:
    n = 1 << 20
    weights = dequantize(RandomBlocks(1).tensor(qtype, n, rms), qtype)
    assert weights.shape == (n,)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(weights))), rms, rtol=0.03)
    # A mean that is not 0 would add the same to all outputs of a row of large matrices.
    assert abs(weights.mean()) < 0.005 * rms


def test_a_tensor_repeats_blocks_only_after_a_prime_number_of_them() -> None:
    tensor = RandomBlocks(1).tensor(Type.Q8_0, 3 * N_BLOCKS * 32, 1.0).reshape(-1, 34)
    np.testing.assert_array_equal(tensor[:N_BLOCKS], tensor[N_BLOCKS : 2 * N_BLOCKS])
    assert len(np.unique(tensor[:N_BLOCKS], axis=0)) == N_BLOCKS
    assert all(N_BLOCKS % n for n in range(2, 257))


@pytest.mark.parametrize(
    ("name", "nbytes", "n_down_q6_k"),
    [
        ("mixtral-8x7b", 28_447_727_616, 16),
        ("qwen3-30b-a3b", 18_550_716_416, 24),
        ("gpt-oss-20b", 12_096_558_336, 0),
    ],
)
def test_types_are_those_that_llama_cpp_chooses(name: str, nbytes: int, n_down_q6_k: int) -> None:
    # llama.cpp's quantizer chose the same types, tensor by tensor, in files with as many layers and experts.
    tensors = list(full_size.tensors(full_size.FULL_SIZE[name], seed=1))
    assert sum(tensor.n_bytes for tensor in tensors) == nbytes
    down = [tensor.qtype for tensor in tensors if "ffn_down_exps.weight" in tensor.name]
    assert down.count(Type.Q6_K) == n_down_q6_k


@pytest.mark.parametrize("name", full_size.FULL_SIZE)
def test_a_small_one_runs(
    name: str, tmp_path: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(full_size.FULL_SIZE[name], n_vocab=400, n_embd=256, n_ff_exp=256, n_head=4, n_head_kv=2)
    monkeypatch.setitem(full_size.FULL_SIZE, name, small)
    path = tmp_path / "model.gguf"
    full_size.make(name, path, n_layer=2, seed=1)
    with gguf_moe.load(path, n_ctx=64, cache_dir=kernel_cache) as model:
        ids = model.tokenize("Hello, wörld")
        assert model.detokenize(ids).removeprefix("<s>") == "Hello, wörld"
        logits = model.logits(ids)
    assert logits.shape == (len(ids), 400)
    assert 1 < logits.std() < 10
