"""Parity with llama.cpp by its stored outputs: the same algorithm on F32 files, as good numbers on quantized.

Every fixture is taken that lies in tests/fixtures; its README says how they are made.
"""

from pathlib import Path

import numpy as np
import pytest
from make_model import dequant
from measures import log_softmax

import gguf_moe

ROOT = Path(__file__).parent.parent
FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("*.gguf"))


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda path: path.stem)
def fixture(request):
    """A model file and llama.cpp's outputs for it."""
    with np.load(request.param.with_suffix(".npz"), allow_pickle=False) as arrays:
        return request.param, dict(arrays)


@pytest.fixture(scope="module")
def quantized(fixture, kernel_cache):
    with gguf_moe.load(fixture[0], threads=2, kv_type="f16", cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture(scope="module")
def truth(fixture, kernel_cache, tmp_path_factory):
    """The same weights as F32."""
    path = tmp_path_factory.mktemp("truth") / "truth.F32.gguf"
    dequant(fixture[0], path)
    with gguf_moe.load(path, threads=2, cache_dir=kernel_cache) as model:
        yield model


def mean_kl(base, other):
    b, o = log_softmax(base), log_softmax(other)
    return float((np.exp(b) * (b - o)).sum(axis=-1).mean())


def nmse(base, other):
    return float(np.square(base - other, dtype=np.float64).sum() / np.square(base, dtype=np.float64).sum())


def greedy(model, ids, n):
    generation = model.generate(ids, max_tokens=n, temperature=0)
    for _ in generation:
        pass
    return generation.result


def test_token_ids(quantized, fixture):
    arrays = fixture[1]
    assert quantized.tokenize(str(arrays["text"])) == arrays["text_ids"].tolist()
    for i, prompt in enumerate(arrays["prompts"]):
        assert quantized.tokenize(str(prompt)) == arrays[f"prompt_ids_{i}"].tolist()


def test_f32_logits_are_llama_cpps(truth, fixture):
    arrays = fixture[1]
    logits = truth.logits(arrays["ids"])
    assert nmse(arrays["truth_logits"], logits) <= 1e-6
    assert mean_kl(arrays["truth_logits"], logits) <= 1e-8


def test_f32_greedy_text_is_llama_cpps(truth, fixture):
    arrays = fixture[1]
    for i in range(len(arrays["prompts"])):
        expected = arrays[f"truth_greedy_{i}"].tolist()
        result = greedy(truth, arrays[f"prompt_ids_{i}"], 64)
        assert result.token_ids == expected
        assert result.finish_reason == ("length" if len(expected) == 64 else "stop")


def test_quantized_logits_are_as_close_to_the_truth_as_llama_cpps(quantized, fixture):
    arrays = fixture[1]
    ours = mean_kl(arrays["truth_logits"], quantized.logits(arrays["ids"]))
    theirs = (arrays["mean_kl_batch_512"] + arrays["mean_kl_batch_1"]) / 2
    assert ours <= 1.25 * theirs


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n_batch", [1, 7, 512])
def test_the_bits_do_not_depend_on_threads_and_chunks(quantized, fixture, kernel_cache, threads, n_batch):
    ids = fixture[1]["ids"]
    expected = quantized.logits(ids)
    with gguf_moe.load(
        fixture[0], threads=threads, n_batch=n_batch, kv_type="f16", cache_dir=kernel_cache
    ) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)


def test_decoding_gives_the_bits_of_the_prefill(quantized, fixture):
    ids = fixture[1]["ids"].tolist()
    expected = quantized.logits(ids).argmax(axis=1)
    for n in (1, 17, 60):
        assert greedy(quantized, ids[:n], 1).token_ids in ([expected[n - 1]], [])
