"""Routers whose choice is recorded, or comes from a trace."""

import numpy as np
import pytest

from gguf_moe.experts.routing import Recorder, Replay, Routing

TOKENS = [3, 141, 59, 26, 5, 35, 8, 97, 93, 2]
N_LAYER, N_EXPERT, N_USED = 2, 6, 3


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory, tiny_gguf):
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    return tiny_gguf(path, n_layer=N_LAYER, n_expert=N_EXPERT, n_expert_used=N_USED, seed=3)


@pytest.fixture
def trace(rng):
    """Fewer steps than there are tokens, so it begins again."""
    ids = rng.permuted(np.tile(np.arange(N_EXPERT), (7, N_LAYER, 1)), axis=2)[..., :N_USED]
    return Routing(ids.astype(np.uint8), N_EXPERT)


def recorder():
    return Recorder(N_LAYER, range(N_LAYER), N_EXPERT, N_USED)


def recorded(context):
    """The logits of all tokens, and the routing that was recorded meanwhile."""
    context.recorder = recorder()
    return context.extend(TOKENS, len(TOKENS)), context.recorder.routing({})


@pytest.mark.parametrize("n_batch", [1, 4])
def test_what_was_recorded_gives_the_same_logits(crew_context, moe_file, assert_same_bits, n_batch):
    with crew_context(moe_file, 2) as context:
        expected, routing = recorded(context)
    assert routing.ids.shape == (len(TOKENS), N_LAYER, N_USED)
    assert len(np.unique(routing.ids)) == N_EXPERT
    with crew_context(moe_file, 2, n_batch=n_batch, replay=Replay(routing)) as context:
        assert_same_bits(context.extend(TOKENS, len(TOKENS)), expected)


def test_a_trace_takes_the_place_of_the_choice(
    crew_context, inline_context, moe_file, trace, assert_same_bits
):
    expected, chosen = recorded(inline_context(moe_file, n_batch=4, replay=Replay(trace)))
    np.testing.assert_array_equal(chosen.ids, trace.ids[np.arange(len(TOKENS)) % 7])
    with crew_context(moe_file, 2, replay=Replay(trace)) as context:
        logits, chosen = recorded(context)
    np.testing.assert_array_equal(chosen.ids, trace.ids[np.arange(len(TOKENS)) % 7])
    assert_same_bits(logits, expected)
    assert (logits != inline_context(moe_file).extend(TOKENS, len(TOKENS))).any()
