"""Measures of a model's numbers."""

from pathlib import Path

import numpy as np
import pytest

import gguf_moe
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.evaluate import perplexity

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"


def test_weights_that_are_no_numbers_are_an_error(tmp_path, kernel_cache):
    with open_checkpoint(FIXTURE) as checkpoint:
        norm = bytes(checkpoint.tensors["output_norm.weight"].data)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(FIXTURE.read_bytes().replace(norm, np.full(len(norm) // 4, np.nan, "<f4").tobytes()))
    with gguf_moe.load(broken, cache_dir=kernel_cache) as model:
        with pytest.raises(gguf_moe.NumericError, match="not a number"):
            perplexity(model, "some words " * 40, n_ctx=16)
        with pytest.raises(gguf_moe.NumericError, match="not a number"):
            list(model.generate("some words", max_tokens=1))
