"""A KV cache of q8_0 under each form of attention: the oracle's bits, near to what a cache of f32 gives."""

import contextlib

import numpy as np
import pytest

from gguf_moe.graph.task import Kind

LATENT = {
    "attention.key_length": 96,
    "attention.value_length": 64,
    "attention.key_length_mla": 64,
    "rope.dimension_count": 32,
}
DIFFERENT_HEADS = {
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
}
TOKENS = [1 + i * 7 % 90 for i in range(40)]


@pytest.fixture(
    scope="module",
    params=[("gpt-oss", {}), ("deepseek2", LATENT), ("gemma4", DIFFERENT_HEADS), ("qwen3next", {})],
    ids=lambda param: param[0],
)
def tiny_file(request, write_tiny, tmp_path_factory):
    name, keys = request.param
    path = tmp_path_factory.mktemp("models") / f"{name}.gguf"
    return write_tiny(name, path, keys=keys)


def logits_of(context):
    """Those of a prompt's end, and of a token that follows."""
    with contextlib.closing(context):
        return np.concatenate([context.extend(TOKENS, 8), context.extend([5], 1)])


def test_its_logits_are_the_oracles_and_near_to_those_of_f32(
    tiny_file, crew_context, inline_context, assert_same_bits
):
    expected, exact = (
        logits_of(inline_context(tiny_file, n_batch=16, n_ctx=48, kv_kind=kind))
        for kind in (Kind.Q8_0, Kind.F32)
    )
    with crew_context(tiny_file, 2, n_batch=16, n_ctx=48, kv_kind=Kind.Q8_0) as context:
        assert_same_bits(logits_of(context), expected)
    error = ((expected - exact) ** 2).mean() / (exact**2).mean()
    assert 0 < error < 0.03  # routers choose other experts now and then
