"""What OpenAI's client does not see: limits, keys, hosts, metrics, and clients that leave."""

import asyncio
import gc
import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from gguf_moe.server.app import Settings
from tests.server.conftest import serve

PROMPT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
MOST_GROWTH = 8 << 20
"""Bytes in 800 requests; what a request left would be more than a page."""


def wait_until(condition, limit_s=20):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_health_page_and_models(http):
    assert http.get("/health").json() == {"status": "ok"}
    assert "<title>gguf-moe</title>" in http.get("/").text
    assert http.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 256
    assert http.get("/nothing").status_code == 404
    assert http.get("/v1/completions").status_code == 405


def test_tokens_there_and_back(http):
    tokens = http.post("/tokenize", json={"content": "A fox"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json()["content"] == "A fox"
    assert http.post("/detokenize", json={"tokens": [1 << 30]}).status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[]", "must be a JSON object"),
        ("{", "is not JSON"),
        ('{"prompt": 7}', "prompt must be a text"),
        ('{"prompt": "A", "n": 99}', "n is 99, but must be from 1 to 16"),
        ('{"prompt": "A", "temperature": "hot"}', "temperature is 'hot', which has the wrong type"),
        ('{"prompt": "A", "max_tokens": true}', "max_tokens is 'True'"),
        ('{"prompt": "A", "stop": [1]}', "stop must be a text"),
        ('{"prompt": "A", "logit_bias": {"x": 1}}', "logit_bias must map token ids"),
        ('{"prompt": [999999]}', "999999 is not a token id"),
        ('{"prompt": "' + "[" * 10 + '", "seed": -1}', "seed is -1"),
        ("[" * 100_000, "is not JSON"),
        ('{"prompt": "A", "temperature": 1' + "0" * 400 + "}", "temperature is too large"),
        ('{"prompt": "A", "logit_bias": {"1": 1' + "0" * 400 + "}}", "logit_bias must map token ids"),
        ('{"prompt": ["A", "B"], "n": 16}', "32 answers are asked for at once, but at most 20"),
    ],
)
def test_a_wrong_body_is_refused_in_a_sentence(http, body, message):
    reply = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_other_content_types_other_hosts_and_large_bodies_are_refused(http):
    assert http.post("/v1/completions", content="{}").status_code == 415
    assert http.get("/health", headers={"host": "evil.example"}).status_code == 403
    large = b" " * (9 << 20)
    headers = {"content-type": "application/json"}
    assert http.post("/v1/completions", content=large, headers=headers).status_code == 413
    chunks = iter([large])
    assert http.post("/v1/completions", content=chunks, headers=headers).status_code == 413


def test_a_key_is_asked_for(start_server):
    url, _ = start_server(api_key="secret")
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401
    wrong, right = ({"authorization": f"Bearer {key}"} for key in ("Secret", "secret"))
    assert httpx.get(f"{url}/v1/models", headers=wrong).status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200


def test_metrics_count(http):
    http.post("/v1/completions", json=PROMPT)
    lines = http.get("/metrics").text.splitlines()
    values = dict(line.split() for line in lines if not line.startswith("#"))
    assert values["gguf_moe_requests_total"] == "1"
    assert values["gguf_moe_generated_tokens_total"] == "8"
    assert float(values["gguf_moe_step_seconds_total"]) > 0


def test_experts_are_shown(http):
    http.post("/v1/completions", json=PROMPT)
    experts = http.get("/experts").json()
    assert experts["layers"] == list(range(8))
    assert all(sum(shares) == pytest.approx(1, abs=0.001) for shares in experts["shares"])
    assert (experts["on_gpu"], experts["hit_rate"]) == (None, None)


def test_a_full_queue(start_server):
    url, worker = start_server(n_waiting=0)
    long = PROMPT | {"max_tokens": 400, "n": 4, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=60):
        reply = httpx.post(f"{url}/v1/completions", json=PROMPT, timeout=60)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    assert wait_until(lambda: worker.scheduler.n_active == 0)


def test_a_time_limit(start_server):
    url, worker = start_server(limit_s=0.05)
    long = PROMPT | {"max_tokens": 200, "n": 4}
    reply = httpx.post(f"{url}/v1/completions", json=long, timeout=60)
    assert reply.status_code == 504
    assert "longer than 0.05 s" in reply.json()["error"]["message"]
    assert wait_until(lambda: worker.scheduler.n_active == 0)


async def leave_early(client, number, rng):
    """A request that is dropped after some time, as a stream or not."""
    body = PROMPT | {"prompt": f"Once upon a time {number % 5}", "max_tokens": 100, "stream": number % 2 == 0}
    try:
        async with asyncio.timeout(rng.uniform(0.005, 0.3)):
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                async for _ in reply.aiter_bytes():
                    pass
            return reply.status_code
    except TimeoutError:
        return None


async def crowd(url, n):
    rng = random.Random(1)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await asyncio.gather(*(leave_early(client, i, rng) for i in range(n)))


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_clients_that_leave_leave_nothing_behind(start_server):
    url, worker = start_server(n_waiting=500)
    seen = asyncio.run(crowd(url, 200))
    assert seen.count(None) > 100
    assert set(seen) <= {None, 200}
    assert wait_until(lambda: worker.scheduler.n_active == worker.scheduler.n_waiting == 0)
    text = httpx.post(f"{url}/v1/completions", json=PROMPT, timeout=60).json()["choices"][0]["text"]
    assert text


def test_threads_end_with_the_server_also_after_clients_that_left(demo_model):
    before = set(threading.enumerate())
    with serve(demo_model, Settings(), 500) as (url, _):
        asyncio.run(crowd(url, 20))
    assert wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc"
)
def test_clients_that_leave_leave_no_memory_and_no_threads(start_server):
    url, worker = start_server(n_waiting=500)
    threads, resident = threading.active_count(), []
    for _ in range(6):  # the first rounds fill caches
        asyncio.run(crowd(url, 200))
        assert wait_until(lambda: worker.scheduler.n_active == worker.scheduler.n_waiting == 0)
        gc.collect()
        resident.append(resident_bytes())
    # asyncio keeps a few threads for what would block its loop.
    assert threading.active_count() - threads <= min(32, (os.cpu_count() or 1) + 4)
    assert resident[-1] - resident[1] < MOST_GROWTH, [n >> 10 for n in resident]
