"""Latent attention on a GPU, in both forms of its files."""

import numpy as np
import pytest
import tiny_models

from gguf_moe.graph.task import Kind

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2, 38]


@pytest.fixture(scope="module", params=["deepseek2", "deepseek2-old"])
def model_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    return tiny_models.write_tiny(request.param, path, quantized=True)


def decode(context, tokens):
    """The logits after each token, one step a token."""
    return np.concatenate([context.extend([token], 1).copy() for token in tokens])


def test_it_computes_what_the_cpu_computes(hybrid_context, crew_context, model_file, assert_same_bits):
    with hybrid_context(model_file, 2, n_batch=5, kv_kind=Kind.F32) as context:
        result = decode(context, TOKENS)
        context.truncate(0)
        assert_same_bits(context.extend(TOKENS, len(TOKENS)), result)
    with crew_context(model_file, 2, n_ctx=48, kv_kind=Kind.F32) as context:
        expected = decode(context, TOKENS)
    assert ((result - expected) ** 2).mean() / (expected**2).mean() < 1e-3
