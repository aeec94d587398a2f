"""OpenAI's own client talks to the server."""

import concurrent.futures

import openai
import pytest

QUESTIONS = [
    f"Tell me about {name}." for name in ("a fox", "the sea", "Milo", "a lamp", "a king", "rain", "a bee")
]


@pytest.fixture
def client(start_server):
    url, _ = start_server()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        yield client


def complete(client, prompt, **options):
    settings = {"model": "demo", "max_tokens": 16, "temperature": 0} | options
    return client.completions.create(prompt=prompt, **settings)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]


def test_a_completion_and_its_stream_say_the_same(client, demo_model):
    whole = complete(client, "Once upon a time")
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 16
    assert whole.usage.prompt_tokens == len(demo_model.tokenize("Once upon a time"))
    chunks = list(complete(client, "Once upon a time", stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_several_streams_at_once_write_what_each_writes_alone(client):
    def stream(question):
        chunks = complete(client, question, stream=True, max_tokens=24)
        return "".join(chunk.choices[0].text for chunk in chunks)

    alone = [stream(question) for question in QUESTIONS]
    with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as pool:
        assert list(pool.map(stream, QUESTIONS)) == alone
    assert len(set(alone)) > 1


def test_several_choices_prompts_and_seeds(client):
    both = complete(client, ["A fox", "The sea"], n=2, temperature=1.0, seed=3)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in both.choices}) == 4
    again = complete(client, "The sea", temperature=1.0, seed=4)
    assert again.choices[0].text == both.choices[3].text


def test_stop_and_token_ids_as_a_prompt(client, demo_model):
    text = complete(client, demo_model.tokenize("Once upon a time")).choices[0].text
    stop = text[len(text) // 2 :][:4]
    stopped = complete(client, "Once upon a time", stop=[stop]).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_logprobs(client):
    logprobs = complete(client, "Once upon a time", max_tokens=3, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 3
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert 0 >= value == max(top.values())
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_what_is_wrong_is_said(client):
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        complete(client, "A fox", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="the context holds 256"):
        complete(client, "fox " * 400)
    with pytest.raises(openai.BadRequestError, match="response_format 'json_object' is not supported"):
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "?"}], response_format={"type": "json_object"}
        )
    with pytest.raises(openai.APIStatusError, match="makes no embeddings"):
        client.embeddings.create(model="demo", input="A fox")
