"""The model under asyncio: turns, streams, and tasks that are cancelled."""

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

import gguf_moe

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
PROMPT = "Once upon a time, in a village between two rivers,"
GREEDY = {"temperature": 0, "max_tokens": 12}
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, cache_dir=kernel_cache, n_batch=64) as model:
        yield model


def run(model, use):
    async def main():
        return await use(gguf_moe.AsyncModel(model))

    return asyncio.run(main())


def test_answers_are_those_of_the_model(model):
    async def use(asynchronous):
        text = await asynchronous.create_completion(PROMPT, **GREEDY)
        chat = await asynchronous.create_chat_completion(CHAT, **GREEDY)
        return text["choices"], chat["choices"]

    expected = model.create_completion(PROMPT, **GREEDY), model.create_chat_completion(CHAT, **GREEDY)
    assert run(model, use) == tuple(answer["choices"] for answer in expected)


def test_streams_add_up_to_the_whole(model):
    async def use(asynchronous):
        pieces = [piece.text async for piece in asynchronous.generate(PROMPT, **GREEDY)]
        chunks = [c["choices"][0]["text"] async for c in asynchronous.stream_completion(PROMPT, **GREEDY)]
        deltas = [c["choices"][0]["delta"] async for c in asynchronous.stream_chat_completion(CHAT, **GREEDY)]
        return "".join(pieces), "".join(chunks), "".join(delta.get("content", "") for delta in deltas)

    text = model.create_completion(PROMPT, **GREEDY)["choices"][0]["text"]
    answer = model.create_chat_completion(CHAT, **GREEDY)["choices"][0]["message"]["content"]
    assert run(model, use) == (text, text, answer)


def test_calls_wait_for_each_other_and_the_loop_stays_free(model):
    async def use(asynchronous):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        calls = (asynchronous.create_completion(PROMPT, temperature=0, max_tokens=200) for _ in range(3))
        texts = {answer["choices"][0]["text"] for answer in await asyncio.gather(*calls)}
        ticking.cancel()
        return len(texts), ticks

    n_texts, ticks = run(model, use)
    assert n_texts == 1
    assert ticks > 5


@pytest.mark.parametrize("method", ["create_completion", "create_chat_completion"])
def test_a_cancelled_task_frees_the_model(model, method):
    prompt = PROMPT if method == "create_completion" else CHAT

    async def use(asynchronous):
        call = getattr(asynchronous, method)
        task = asyncio.create_task(call(prompt, temperature=0, logit_bias=dict.fromkeys(ends, -float("inf"))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asynchronous.create_completion(PROMPT, **GREEDY)

    ends = model.tokenizer.eog_ids
    assert run(model, use)["choices"][0]["text"]


def test_a_stream_that_is_left_early_frees_the_model(model):
    async def use(asynchronous):
        async with aclosing(asynchronous.stream_completion(PROMPT, temperature=0)) as chunks:
            async for _ in chunks:
                break
        return await asynchronous.create_completion(PROMPT, **GREEDY)

    assert run(model, use)["choices"][0]["text"]


def test_errors_come_through(model):
    async def use(asynchronous):
        with pytest.raises(gguf_moe.OptionError, match="temperature"):
            await asynchronous.create_completion(PROMPT, temperature=-1)
        with pytest.raises(gguf_moe.OptionError, match="prompt is empty"):
            [chunk async for chunk in asynchronous.stream_completion("")]

    run(model, use)


def test_cancelling_works_in_a_prompt_and_in_an_answer(model):
    cancel = threading.Event()
    generation = model.generate(PROMPT, temperature=0, cancel=cancel)
    next(generation)
    cancel.set()
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"
    seen = []
    prompt = [5, 6, 7] * 100
    generation = model.generate(prompt, cancel=cancel, progress=lambda stage, done, total: seen.append(done))
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"
    assert seen == [64]
    assert model.stats()["cached_tokens"] == 64


def test_two_models_work_at_the_same_time(model, kernel_cache):
    texts = {}

    def work(name, used):
        texts[name] = used.create_completion(PROMPT, **GREEDY)["choices"][0]["text"]

    with gguf_moe.load(FIXTURE, threads=1, cache_dir=kernel_cache) as other:
        threads = [threading.Thread(target=work, args=pair) for pair in (("a", model), ("b", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert texts["a"] == texts["b"]


def test_stats_add_up(model):
    before = model.stats()["totals"]
    model.create_completion(PROMPT, **GREEDY)
    after = model.stats()["totals"]
    assert after["generations"] == before["generations"] + 1
    assert after["generated_tokens"] == before["generated_tokens"] + 12
    assert after["prompt_tokens"] == before["prompt_tokens"] + len(model.tokenize(PROMPT))
