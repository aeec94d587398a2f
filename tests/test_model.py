"""The Python interface of a loaded model."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import gguf_moe
from gguf_moe.sample import Sampling

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
PROMPT = "Once upon a time, in a village between two rivers,"


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, cache_dir=kernel_cache) as model:
        yield model


def test_a_loaded_model_says_what_it_is(model):
    assert model.arch.name == "llama"
    assert model.hparams.n_expert == 4
    assert model.n_ctx == model.hparams.n_ctx_train == 512
    assert model.path == FIXTURE
    assert model.load_times.load_s > 0


def test_logits_have_a_row_for_each_token(model):
    logits = model.logits([5, 6, 7])
    assert logits.shape == (3, model.hparams.n_vocab)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(model.logits([5, 6])[1], logits[1])


def test_pieces_make_up_the_text(model):
    generation = model.generate(PROMPT, max_tokens=20, temperature=0)
    pieces = list(generation)
    assert "".join(piece.text for piece in pieces) == generation.result.text
    assert [p.token for p in pieces if p.token is not None] == generation.result.token_ids
    assert generation.result.finish_reason == "length"
    assert len(generation.result.token_ids) == 20


def test_a_seed_gives_the_same_text(model):
    texts = {model.create_completion(PROMPT, max_tokens=12, seed=5)["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1


def test_a_second_prompt_reuses_the_cache_and_gives_the_same(model, kernel_cache):
    first = model.generate(PROMPT, max_tokens=8, temperature=0)
    list(first)
    longer = first.result.prompt_token_ids + first.result.token_ids[:4]
    again = model.generate(longer, max_tokens=4, temperature=0)
    list(again)
    assert again.result.n_reused >= len(longer) - 1
    assert again.result.token_ids == first.result.token_ids[4:]


def test_a_stop_string_ends_the_text_before_it(model):
    whole = model.create_completion(PROMPT, max_tokens=30, temperature=0)["choices"][0]["text"]
    stop = whole[10:13]
    choice = model.create_completion(PROMPT, max_tokens=30, temperature=0, stop=stop)["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_a_full_context_ends_with_length(kernel_cache):
    with gguf_moe.load(FIXTURE, n_ctx=32, threads=1, cache_dir=str(kernel_cache)) as model:
        generation = model.generate(PROMPT, temperature=0)
        n_prompt = len(generation.result.prompt_token_ids)
        list(generation)
        assert generation.result.finish_reason == "length"
        # The last token needs no place of its own: nothing is computed from it.
        assert n_prompt + len(generation.result.token_ids) == 33
        with pytest.raises(gguf_moe.ContextFullError, match=r"33 tokens.*holds 32"):
            model.generate([5] * 33)


def test_no_tokens_wanted_gives_none(model):
    generation = model.generate(PROMPT, max_tokens=0)
    assert list(generation) == []
    assert generation.result.finish_reason == "length"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(""), "prompt is empty"),
        (lambda m: m.generate([]), "prompt is empty"),
        (lambda m: m.generate([10**6]), "1000000 is not a token id"),
        (lambda m: m.generate([-1]), "-1 is not a token id"),
        (lambda m: m.generate("a", max_tokens=-1), "max_tokens is -1"),
        (lambda m: m.generate("a", temperature=-2), "temperature is -2"),
        (lambda m: m.generate("a", temperatur=1), "temperatur is not a sampling option"),
        (lambda m: m.logits([]), "prompt is empty"),
    ],
)
def test_wrong_arguments_are_named(model, call, message):
    with pytest.raises(gguf_moe.OptionError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"n_ctx": -1}, "n_ctx is -1"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"kv_type": "q4_0"}, "kv_type is 'q4_0'"),
        ({"cache_dir": ""}, "cache_dir is empty"),
    ],
)
def test_wrong_load_options_are_named(options, message):
    with pytest.raises(gguf_moe.OptionError, match=message):
        gguf_moe.load(FIXTURE, **options)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(gguf_moe.DeviceError, match=r"CuPy cannot be imported|no GPU|GPU 99"):
        gguf_moe.load(FIXTURE, device="cuda:99")


def test_a_context_beyond_memory_is_refused_with_numbers(kernel_cache):
    with pytest.raises(gguf_moe.OutOfMemoryError, match=r"1073741824 positions needs \d+\.\d GiB"):
        gguf_moe.load(FIXTURE, n_ctx=1 << 30, cache_dir=kernel_cache)


def test_one_call_at_a_time(model):
    generation = model.generate(PROMPT, max_tokens=5)
    next(generation)
    with pytest.raises(gguf_moe.BusyError, match="busy"):
        model.logits([5])
    generation.close()
    assert model.logits([5]).shape[0] == 1


def test_a_dropped_generation_frees_the_model(model):
    next(model.generate(PROMPT, max_tokens=5, temperature=0))
    assert model.logits([5]).shape[0] == 1


def test_it_may_be_used_from_another_thread(model):
    expected = model.logits([5, 6])
    results = []
    thread = threading.Thread(target=lambda: results.append(model.logits([5, 6])))
    thread.start()
    thread.join(30)
    np.testing.assert_array_equal(results[0], expected)


def test_a_closed_model_says_so_and_its_threads_are_gone(kernel_cache):
    before = threading.active_count()
    model = gguf_moe.load(FIXTURE, threads=3, cache_dir=kernel_cache)
    assert threading.active_count() == before + 2
    model.close()
    model.close()
    assert threading.active_count() == before
    with pytest.raises(gguf_moe.BusyError, match="closed"):
        model.logits([5])


def test_closing_ends_a_generation_between_two_pieces(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=1, cache_dir=kernel_cache) as model:
        generation = model.generate(PROMPT, temperature=0)
        whole = model.generate(PROMPT, max_tokens=0)
        assert list(whole) == []
        next(generation)
    with pytest.raises(gguf_moe.BusyError, match="closed before the text was complete"):
        next(generation)
    assert list(whole) == []


def test_a_model_is_not_closed_inside_a_call(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=1, cache_dir=kernel_cache) as model:
        with pytest.raises(gguf_moe.BusyError, match="inside a call"):
            list(model.generate(PROMPT, max_tokens=1, progress=lambda *_: model.close()))
        assert model.logits([5]).shape[0] == 1


def test_closing_waits_for_a_call_in_another_thread(kernel_cache):
    model = gguf_moe.load(FIXTURE, threads=1, cache_dir=kernel_cache)
    generation = model.generate(PROMPT, max_tokens=3, temperature=0)
    began, goes_on, closed = threading.Event(), threading.Event(), threading.Event()
    texts = []

    def run():
        texts.append(next(generation).text)
        began.set()
        goes_on.wait(30)
        texts.extend(piece.text for piece in generation)
        assert not closed.is_set()

    def close():
        model.close()
        closed.set()

    threads = [threading.Thread(target=run)]
    threads[0].start()
    assert began.wait(30)
    threads.append(threading.Thread(target=close))
    threads[1].start()
    goes_on.set()
    for thread in threads:
        thread.join(30)
    assert closed.is_set()
    assert generation.result.finish_reason == "length"


def test_values_for_a_gpu_are_checked_without_one():
    for options in ({"vram": "12Q"}, {"vram": ""}, {"policy": "LRU"}, {"device": "cuda:x"}):
        (value,) = options.values()
        with pytest.raises(gguf_moe.OptionError, match=repr(value)):
            gguf_moe.load(FIXTURE, **options)


def test_read_into_memory_gives_the_same_and_survives_the_file(model, kernel_cache, tmp_path):
    path = tmp_path / "copy.gguf"
    shutil.copy(FIXTURE, path)
    with gguf_moe.load(path, mmap=False, threads=1, cache_dir=kernel_cache) as copy:
        os.truncate(path, 0)
        np.testing.assert_array_equal(copy.logits([5, 6, 7]), model.logits([5, 6, 7]))


def test_completion_has_openais_shape(model):
    model.logits([5])
    out = model.create_completion(PROMPT, max_tokens=3, temperature=0)
    n_prompt = len(model.tokenize(PROMPT))
    assert out["object"] == "text_completion"
    assert out["choices"][0]["finish_reason"] == "length"
    assert out["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 3,
        "total_tokens": n_prompt + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_streams_add_up_to_the_whole(model):
    whole = model.create_completion(PROMPT, max_tokens=9, temperature=0)["choices"][0]
    chunks = list(model.create_completion(PROMPT, max_tokens=9, temperature=0, stream=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks][-1] == whole["finish_reason"]
    assert len({c["id"] for c in chunks}) == 1


def test_chat_uses_the_files_template(model):
    messages = [{"role": "user", "content": "Hi"}]
    whole = model.create_chat_completion(messages, max_tokens=6, temperature=0)
    chunks = list(model.create_chat_completion(messages, max_tokens=6, temperature=0, stream=True))
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_sampling_may_be_given_whole(model):
    a = model.create_completion(PROMPT, max_tokens=8, sampling=Sampling(temperature=0.0))
    b = model.create_completion(PROMPT, max_tokens=8, temperature=0.0)
    assert a["choices"][0]["text"] == b["choices"][0]["text"]


def test_progress_names_its_stages(few_kernels_file, tmp_path):
    seen = set()
    options = {"threads": 1, "cache_dir": tmp_path / "cold"}
    with gguf_moe.load(
        few_kernels_file, **options, progress=lambda stage, done, total: seen.add(stage)
    ) as model:
        assert model.load_times.n_compiled > 10
        list(model.generate([5, 6], max_tokens=1, progress=lambda stage, done, total: seen.add(stage)))
    assert {"compiling", "prompt"} <= seen
