"""A server of a small model, in this process, on a free port."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

import gguf_moe
from gguf_moe.server.app import Settings, create_app
from gguf_moe.server.worker import Worker

FIXTURE = Path(__file__).parents[1] / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
DEMO = Path(gguf_moe.__file__).parent / "models" / "demo.gguf"
STARTS_WITHIN_S = 30


@contextlib.contextmanager
def serve(model, settings, n_waiting):
    """The base URL of a running server, and its worker."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Worker(model, n_waiting) as worker:
        server = uvicorn.Server(uvicorn.Config(create_app(worker, settings), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + STARTS_WITHIN_S
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", worker
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def demo_model(kernel_cache):
    with gguf_moe.load(DEMO, threads=2, parallel=4, n_ctx=256, cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture
def start_server(demo_model):
    """start_server(n_waiting=.., **settings) -> (base URL, worker), until the test's end."""
    with contextlib.ExitStack() as stack:
        yield lambda n_waiting=16, **settings: stack.enter_context(
            serve(demo_model, Settings(**settings), n_waiting)
        )


@pytest.fixture
def http(start_server):
    """A client of a server with the usual settings."""
    url, _ = start_server(hosts=("127.0.0.1",))
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
