"""A whole model: the crew's logits are the oracle's, bit for bit."""

import numpy as np
import pytest

from gguf_moe.graph.task import Kind

PROMPT = [1, 260, 17, 99, 261, 5, 270]
NEXT = [33, 44]


def run(context):
    """Logits of a prompt, then of two tokens one by one."""
    logits = [context.extend(PROMPT, 3).copy()]
    logits += [context.extend([token], 1).copy() for token in NEXT]
    return np.concatenate(logits)


@pytest.fixture(scope="session", params=["moe", "dense"])
def model_file(request, moe_file, dense_file):
    return moe_file if request.param == "moe" else dense_file


@pytest.fixture(scope="session", params=[Kind.F16, Kind.F32, Kind.Q8_0], ids=lambda kind: f"kv_{kind.value}")
def kv_kind(request):
    return request.param


@pytest.fixture(scope="session")
def oracle(inline_context, model_file, kv_kind):
    logits = run(inline_context(model_file, kv_kind=kv_kind))
    assert logits.shape == (5, 300)
    assert np.isfinite(logits).all()
    return logits


@pytest.mark.parametrize(("n_threads", "n_batch"), [(1, 8), (2, 1), (2, 3), (3, 8), (8, 3)])
def test_the_crew_gives_the_oracles_bits(
    oracle, crew_context, model_file, kv_kind, n_threads, n_batch, assert_same_bits
):
    with crew_context(model_file, n_threads, n_batch=n_batch, kv_kind=kv_kind) as context:
        assert_same_bits(run(context), oracle)


@pytest.mark.parametrize("n_batch", [1, 3])
def test_the_oracle_does_not_depend_on_chunks(
    oracle, inline_context, model_file, kv_kind, n_batch, assert_same_bits
):
    assert_same_bits(run(inline_context(model_file, n_batch=n_batch, kv_kind=kv_kind)), oracle)


def test_buffers_can_be_looked_at_after_each_task(inline_context, moe_file):
    seen = {}

    def look(task):
        for name, buffer in task.outputs.items():
            seen[task.name, name] = context.buffer(buffer.name)[: len(PROMPT)].copy()

    context = inline_context(moe_file, on_task=look)
    context.extend(PROMPT, 1)
    assert [task.name for task in context.graph.tasks] == list(dict.fromkeys(name for name, _ in seen))
    weights = seen["ffn_moe_topk-1", "weights"]
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
    assert (seen["l_out-0", "out"] != seen["l_out-1", "out"]).any()
