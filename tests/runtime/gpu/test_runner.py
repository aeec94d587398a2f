"""Steps on a GPU that holds some of the experts: what it holds changes nothing in the results."""

import numpy as np
import pytest

from gguf_moe.graph.task import Kind
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.source import QTYPES

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2, 38]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    qtypes = tuple(qtype for qtype in ACTIVATION_FORMAT if qtype.name.lower() in QTYPES)
    return tiny_gguf(path, n_layer=3, n_expert=6, n_expert_used=3, seed=5, qtypes=qtypes)


def decode(context, tokens):
    """The logits after each token, one step a token."""
    return np.concatenate([context.extend([token], 1).copy() for token in tokens])


def test_the_cache_changes_no_bit(hybrid_context, moe_file, assert_same_bits):
    results = []
    for slots in (0, 1, 3, 6):
        with hybrid_context(moe_file, slots) as context:
            results.append(decode(context, TOKENS))
            context.truncate(0)
            results.append(decode(context, TOKENS))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_it_computes_what_the_cpu_computes(hybrid_context, crew_context, moe_file):
    with hybrid_context(moe_file, 2, kv_kind=Kind.F32) as context:
        result = decode(context, TOKENS)
    with crew_context(moe_file, 2, n_ctx=48, kv_kind=Kind.F32) as context:
        expected = decode(context, TOKENS)
    assert ((result - expected) ** 2).mean() / (expected**2).mean() < 1e-3
