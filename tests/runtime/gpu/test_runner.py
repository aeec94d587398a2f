"""Steps on a GPU that holds some of the experts: what it holds changes nothing in the results."""

import numpy as np
import pytest
from tiny_models import write_tiny

from gguf_moe.experts.routing import Recorder, Replay, Routing
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.gpu import kv
from gguf_moe.runtime.gpu.link import Rates
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cuda.source import QTYPES
from gguf_moe_kernels.quants import GGMLType

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


@pytest.mark.parametrize("kv_kind", [Kind.F32, Kind.Q8_0], ids=lambda kind: kind.value)
def test_it_computes_what_the_cpu_computes(hybrid_context, crew_context, moe_file, kv_kind, assert_same_bits):
    with hybrid_context(moe_file, 2, kv_kind=kv_kind) as context:
        result = decode(context, TOKENS)
        context.truncate(0)
        assert_same_bits(context.extend(TOKENS, len(TOKENS)), result)
    with crew_context(moe_file, 2, n_ctx=48, kv_kind=kv_kind) as context:
        expected = decode(context, TOKENS)
    assert ((result - expected) ** 2).mean() / (expected**2).mean() < 1e-3


def test_its_kv_cache_can_be_read_and_given_back(hybrid_context, moe_file, assert_same_bits, monkeypatch):
    monkeypatch.setattr(kv, "STAGING", 1000)  # in several parts, which do not end with a row
    with hybrid_context(moe_file, 2) as context:
        decode(context, TOKENS)
        parts = context.state.parts(len(TOKENS))
        kept = [context.state.read(part) for part in parts]
        expected = decode(context, [7, 8])
    with hybrid_context(moe_file, 2) as context:
        for part, data in zip(parts, kept, strict=True):
            context.state.write(part, data)
        context.state.hold(TOKENS)
        assert_same_bits(decode(context, [7, 8]), expected)


def test_a_trace_takes_the_place_of_the_routers_choice(hybrid_context, moe_file, rng, assert_same_bits):
    ids = rng.permuted(np.tile(np.arange(6), (4, 3, 1)), axis=2)[..., :3]
    expected = ids[np.arange(len(TOKENS)) % 4]
    results = []
    for slots in (0, 2):
        with hybrid_context(moe_file, slots, replay=Replay(Routing(ids, 6))) as context:
            context.recorder = Recorder(3, range(3), 6, 3)
            results.append(context.extend(TOKENS[:5], 5))
            results.append(decode(context, TOKENS[5:]))
            np.testing.assert_array_equal(context.recorder.routing({}).ids, expected)
    for result, same in zip(results[2:], results[:2], strict=True):
        assert_same_bits(result, same)


def test_what_was_recorded_gives_the_same_logits(hybrid_context, moe_file, assert_same_bits):
    with hybrid_context(moe_file, 2) as context:
        context.recorder = Recorder(3, range(3), 6, 3)
        expected = decode(context, TOKENS)
        routing = context.recorder.routing({})
    with hybrid_context(moe_file, 1, replay=Replay(routing)) as context:
        assert_same_bits(decode(context, TOKENS), expected)


@pytest.mark.parametrize("arch", ["gemma4", "gpt-oss", "llama4"])
def test_scales_biases_and_weighed_inputs_of_experts_count_wherever_they_are(
    hybrid_context, crew_context, tmp_path, assert_same_bits, arch, monkeypatch
):
    path, results = write_tiny(arch, tmp_path / f"{arch}.gguf", quantized=True), []
    for slots in (0, 3, 8):
        with hybrid_context(path, slots, kv_kind=Kind.F32) as context:
            results.append(decode(context, TOKENS))
    with hybrid_context(path, 3, kv_kind=Kind.F32, rates=Rates(1.0, 0.3)) as context:
        monkeypatch.setattr(context.gpu.trial, "way", 1)
        results.append(decode(context, TOKENS))
    for result in results[1:]:
        assert_same_bits(result, results[0])
    with crew_context(path, 2, n_ctx=48, kv_kind=Kind.F32) as context:
        expected = decode(context, TOKENS)
    assert ((results[0] - expected) ** 2).mean() / (expected**2).mean() < 1e-3


@pytest.mark.parametrize(
    ("qtype", "rates", "n_rows"),
    [
        (GGMLType.Q4_K, Rates(1.0, 100.0), 256),
        (GGMLType.Q4_K, Rates(1.0, 0.3), 160),
        (GGMLType.Q8_0, Rates(1.0, 0.3), 160),
        (GGMLType.F32, Rates(1.0, 0.3), 160),
    ],
)
def test_down_matrices_that_come_over_the_link_change_no_bit(
    hybrid_context, tmp_path, tiny_gguf, assert_same_bits, monkeypatch, qtype, rates, n_rows
):
    path = tiny_gguf(tmp_path / "moe.gguf", n_layer=3, n_expert=6, n_expert_used=3, seed=5, qtypes=(qtype,))
    with hybrid_context(path, 2) as context:
        expected = decode(context, TOKENS)
    for slots in (0, 2):
        with hybrid_context(path, slots, rates=rates) as context:
            monkeypatch.setattr(context.gpu.trial, "way", 1)
            context.extend(TOKENS[:3], 1)
            context.truncate(0)
            assert_same_bits(decode(context, TOKENS), expected)
            receives = [x for x in context.gpu.ways[1].launches if x.kernel == "link.fetch_missing"]
            assert {x.arguments["nbytes"].item() for x in receives} == {n_rows * qtype.row_size(256)}
