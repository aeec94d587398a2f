"""Recurrent layers on a GPU: their states go on from step to step, and begin again with the context."""

import numpy as np
import pytest

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime import sequence
from gguf_moe.runtime.gpu import ops
from gguf_moe.runtime.gpu.placement import open_device

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2, 38]


@pytest.fixture(scope="module", params=["recurrent_file", "other_recurrent_file"])
def model_file(request):
    return request.getfixturevalue(request.param)


def decode(context, tokens):
    """The logits after each token, one step a token."""
    return np.concatenate([context.extend([token], 1).copy() for token in tokens])


def test_steps_of_all_sizes_give_the_same_bits(hybrid_context, model_file, assert_same_bits):
    with hybrid_context(model_file, 3, n_batch=5) as context:
        expected = decode(context, TOKENS)
        for n in (1, 4, len(TOKENS)):
            assert context.truncate(n - 1) == 0
            assert_same_bits(context.extend(TOKENS[:n], n), expected[:n])
            for i, token in enumerate(TOKENS[n:], n):
                assert_same_bits(context.extend([token], 1)[0], expected[i])


def test_kept_states_are_gone_back_to(hybrid_context, model_file, monkeypatch, assert_same_bits):
    monkeypatch.setattr(sequence, "PROMPT_END", 3)
    monkeypatch.setattr(sequence, "KEEP_AGAIN", 4)
    with hybrid_context(model_file, 2, n_batch=5) as context:
        context.extend(TOKENS, 1)
        assert context.truncate(len(TOKENS) - 1) == len(TOKENS) - 3
        logits = decode(context, [7, 8])
        context.truncate(0)
        decode(context, TOKENS[:-3])
        assert_same_bits(decode(context, [7, 8]), logits)


def test_it_computes_what_the_cpu_computes(hybrid_context, crew_context, model_file):
    with hybrid_context(model_file, 2, kv_kind=Kind.F32) as context:
        result = decode(context, TOKENS)
    with crew_context(model_file, 2, n_ctx=48, kv_kind=Kind.F32) as context:
        expected = decode(context, TOKENS)
    assert ((result - expected) ** 2).mean() / (expected**2).mean() < 1e-3


def test_heads_that_are_too_wide_are_left_to_the_cpu(recurrent_file, monkeypatch):
    monkeypatch.setattr(ops, "WIDEST_DELTA_NET_HEAD", 8)
    with open_checkpoint(recurrent_file) as checkpoint:
        arch, hparams, weights = read_model(checkpoint)
        assert open_device("auto", arch, hparams, weights, Kind.F16, None) is None
        with pytest.raises(UnsupportedModelError, match=r"up to 8 .* heads of 16; use --device cpu"):
            open_device("cuda:0", arch, hparams, weights, Kind.F16, None)
