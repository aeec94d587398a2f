"""Each architecture on a tiny file with random weights: parity with llama.cpp, and the same bits in all ways.

The files are made here (scripts/tiny_models.py); llama.cpp's outputs for them are in tests/fixtures.
docs/models.md is made from the results of these tests (scripts/models_table.py).
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from measures import log_softmax
from tiny_fixtures import N_LOGITS, N_PROMPT, late_ids, texts
from tiny_table import TINY

import gguf_moe
from gguf_moe.arch.base import GatedUnit
from gguf_moe.graph.task import Kind
from gguf_moe_kernels.ref import exact, ops

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "architectures"
N_CTX = 512


@pytest.fixture(scope="module", params=sorted(TINY))
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def expected(arch):
    """llama.cpp's outputs."""
    with np.load(FIXTURES / f"{arch}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def f32_file(arch, tmp_path_factory):
    return tiny_models.write_tiny(arch, tmp_path_factory.mktemp("tiny") / f"{arch}.F32.gguf")


@pytest.fixture(scope="module")
def quantized_file(arch, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / f"{arch}.quantized.gguf"
    return tiny_models.write_tiny(arch, path, quantized=True)


@pytest.fixture(scope="module")
def f32(f32_file, kernel_cache):
    with gguf_moe.load(f32_file, n_ctx=N_CTX, threads=2, kv_type="f32", cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture(scope="module")
def quantized(quantized_file, kernel_cache):
    with gguf_moe.load(quantized_file, n_ctx=N_CTX, threads=2, cache_dir=kernel_cache) as model:
        yield model


def nmse(base, other):
    return float(np.square(base - other, dtype=np.float64).sum() / np.square(base, dtype=np.float64).sum())


def mean_kl(base, other):
    b, o = log_softmax(base), log_softmax(other)
    return float((np.exp(b) * (b - o)).sum(axis=-1).mean())


def test_the_files_are_those_that_llama_cpp_read(f32_file, quantized_file, expected):
    assert tiny_models.digest(f32_file) == expected["digest"]
    assert tiny_models.digest(quantized_file) == expected["quantized_digest"]


def test_token_ids(f32, expected):
    ends = np.cumsum(expected["text_lengths"])
    for text, ids in zip(texts(), np.split(expected["text_ids"], ends[:-1]), strict=True):
        assert f32.tokenize(text, special=False) == ids.tolist(), repr(text)


def test_f32_logits_are_llama_cpps(f32, expected, record_property):
    base = expected["logits"]
    logits = f32.logits(expected["ids"][0, :N_LOGITS])
    record_property("nmse", nmse(base, logits))
    assert 0.5 < base.std() < 20  # neither flat nor certain of everything
    assert len(np.unique(base.argmax(axis=1))) > N_LOGITS // 4
    assert nmse(base, logits) <= 1e-6
    # ggml's CPU kernel takes GELU from a table of half floats (the test below).
    is_rounded = f32.arch.gated_unit is GatedUnit.GEGLU
    assert mean_kl(base, logits) <= (1e-6 if is_rounded else 1e-8)


def test_with_gelu_in_half_floats_gemma4_is_as_near_as_others(inline_context, tmp_path, monkeypatch):
    def rounded_geglu(gate, up):
        half = exact.gelu(gate.astype(np.float16).astype(np.float32)).astype(np.float16)
        gelu = np.where(gate <= -10, 0, np.where(gate >= 10, gate, half.astype(np.float32)))
        gate[:] = gelu * up

    monkeypatch.setattr(ops, "geglu", rounded_geglu)
    path = tiny_models.write_tiny("gemma4", tmp_path / "gemma4.gguf")
    expected = np.load(FIXTURES / "gemma4.npz", allow_pickle=False)
    ids, base = expected["ids"][0, :N_LOGITS].tolist(), expected["logits"]
    with contextlib.closing(
        inline_context(path, n_batch=N_LOGITS, n_ctx=N_LOGITS, kv_kind=Kind.F32)
    ) as context:
        logits = context.extend(ids, N_LOGITS)
    assert nmse(base, logits) <= 1e-8
    assert mean_kl(base, logits) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("arch", [name for name in TINY if TINY[name].late], indirect=True)
def test_f32_logits_are_llama_cpps_where_attention_becomes_another_one(
    arch, f32_file, expected, kernel_cache
):
    base = expected["late_logits"]
    ids = late_ids(base.shape[1], TINY[arch].late)
    with gguf_moe.load(f32_file, n_ctx=len(ids), kv_type="f32", cache_dir=kernel_cache) as model:
        logits = model.logits(ids)[-N_LOGITS:]
    assert nmse(base, logits) <= 1e-6
    assert mean_kl(base, logits) <= 1e-8


def test_f32_greedy_text_is_llama_cpps(f32, expected):
    for i in range(3):
        generation = f32.generate(expected["ids"][i, :N_PROMPT], max_tokens=64, temperature=0)
        tokens = [piece.token for piece in generation if piece.token is not None]
        n = len(expected[f"greedy_{i}"])
        assert tokens[:n] == expected[f"greedy_{i}"].tolist()


def test_quantized_logits_are_as_close_to_the_truth_as_llama_cpps(f32, quantized, expected, record_property):
    ours = np.mean([mean_kl(f32.logits(ids), quantized.logits(ids)) for ids in expected["ids"]])
    theirs = (expected["mean_kl_batch_512"] + expected["mean_kl_batch_1"]) / 2
    record_property("kl_ratio", float(ours / theirs))
    assert ours <= 1.25 * theirs


@pytest.mark.parametrize(("n_batch", "n_threads"), [(1, 2), (7, 1), (64, 3)])
def test_prefill_in_chunks_is_step_by_step(
    quantized, quantized_file, expected, crew_context, n_batch, n_threads
):
    ids = expected["ids"][0, :N_LOGITS].tolist()
    whole = quantized.logits(ids)
    with crew_context(quantized_file, n_threads, n_batch=n_batch, n_ctx=N_CTX) as context:
        np.testing.assert_array_equal(context.extend(ids, len(ids)), whole)


@pytest.mark.parametrize("form", ["f32_file", "quantized_file"])
def test_the_oracle_gives_the_crews_bits(request, form, expected, crew_context, inline_context):
    path, ids = request.getfixturevalue(form), expected["ids"][0, :32].tolist()
    kind = Kind.F32 if form == "f32_file" else Kind.F16
    with crew_context(path, 2, n_batch=20, n_ctx=N_CTX, kv_kind=kind) as context:
        crew = context.extend(ids, 5).copy()
    with contextlib.closing(inline_context(path, n_batch=20, n_ctx=N_CTX, kv_kind=kind)) as context:
        np.testing.assert_array_equal(context.extend(ids, 5), crew)
