"""The app: OpenAI's routes and a few of llama.cpp's, over one model."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gguf_moe.completions import envelope
from gguf_moe.continuations import Prompt
from gguf_moe.errors import GGUFMoeError
from gguf_moe.experts.cache import MISSING
from gguf_moe.server import metrics
from gguf_moe.server.choices import ChatChoice, Choice, TextChoice
from gguf_moe.server.errors import describe, error_response
from gguf_moe.server.guard import Guard
from gguf_moe.server.reply import Reply, until_left
from gguf_moe.server.requests import (
    RequestError,
    Wanted,
    read_messages,
    read_prompt_options,
    read_prompts,
    read_wanted,
)
from gguf_moe.server.worker import Answers, Worker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
BODY_LIMIT_S = 30.0
"""How long a client may take to send its request."""
CLIENT_LEFT = 499
"""A status for the log: nobody hears it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """hosts: names that requests may be sent to, None for all. limit_s: how long an answer may take."""

    hosts: tuple[str, ...] | None = None
    api_key: str | None = None
    limit_s: float = 600.0


class Server:
    """The endpoints. They run in the event loop; the worker's thread computes."""

    def __init__(self, worker: Worker, settings: Settings):
        self._worker = worker
        self._model = worker.model
        self._limit_s = settings.limit_s
        self._name = worker.model.path.stem

    def routes(self) -> list[Route]:
        """All paths."""
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/experts", self.experts),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        text = resources.files("gguf_moe.server").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline'"})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics.prometheus(self._worker.scheduler), media_type=metrics.CONTENT_TYPE)

    async def experts(self, request: Request) -> Response:
        """Each expert's share of its layer's choices lately, and which of them the GPU holds."""
        use, slots = self._worker.scheduler.use, self._model.gpu and self._model.gpu.slots
        cache = slots and slots.cache
        held = cache and [[slot != MISSING for slot in cache.table(i)] for i in range(cache.n_layer)]
        hit_rate = slots.counts.hit_rate if slots else None
        return JSONResponse(
            {"layers": use.layers, "shares": use.shares(), "on_gpu": held, "hit_rate": hit_rate}
        )

    async def models(self, request: Request) -> Response:
        meta = {
            "n_ctx": self._model.n_ctx,
            "n_vocab": self._model.hparams.n_vocab,
            "has_chat_template": self._model.chat_template is not None,
        }
        model = {
            "id": self._name,
            "object": "model",
            "created": int(self._model.path.stat().st_mtime),
            "owned_by": "gguf-moe",
            "meta": meta,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def embeddings(self, request: Request) -> Response:
        raise RequestError(501, "this server makes no embeddings; use an embedding model's server.")

    async def tokenize(self, request: Request) -> Response:
        body = await _read_json(request)
        if not isinstance(body.get("content"), str):
            raise RequestError(400, "content must be a text.", "content")
        bos = bool(body.get("add_special", False)) and None
        special = bool(body.get("parse_special", True))
        return JSONResponse({"tokens": self._model.tokenize(body["content"], bos=bos, special=special)})

    async def detokenize(self, request: Request) -> Response:
        body = await _read_json(request)
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise RequestError(400, "tokens must be a list of token ids.", "tokens")
        return JSONResponse({"content": self._model.detokenize(tokens)})

    async def completions(self, request: Request) -> Response:
        body = await _read_json(request)
        wanted = read_wanted(body, is_chat=False)
        prompts = [prompt for prompt in read_prompts(body) for _ in range(wanted.n)]
        choices: list[Choice] = [TextChoice(i, self._model.tokenizer) for i in range(len(prompts))]
        reply = Reply(envelope("cmpl", "text_completion", self._name), choices, wanted.n)
        return await self._answer(request, wanted, prompts, reply)

    async def chat_completions(self, request: Request) -> Response:
        body = await _read_json(request)
        wanted, messages = read_wanted(body, is_chat=True), read_messages(body)
        # A long conversation takes a while to render and to cut into tokens; others are answered.
        prompt = await asyncio.to_thread(self._model.chat_prompt, messages, **read_prompt_options(body))
        tokenizer, n_top = self._model.tokenizer, wanted.n_logprobs or 0
        choices: list[Choice] = [ChatChoice(i, tokenizer, prompt.splitter(), n_top) for i in range(wanted.n)]
        kind = "chat.completion.chunk" if wanted.stream else "chat.completion"
        reply = Reply(envelope("chatcmpl", kind, self._name), choices, wanted.n)
        return await self._answer(request, wanted, [prompt] * wanted.n, reply)

    async def _answer(
        self, request: Request, wanted: Wanted, prompts: Sequence[Prompt], reply: Reply
    ) -> Response:
        """Submit the generations, then answer as a stream or as a whole."""
        reply.results, generations = [], []
        for i, prompt in enumerate(prompts):
            options = wanted.options_of(i % wanted.n)
            # A long prompt takes a while to cut into tokens, and a grammar to compile; others are answered.
            generations.append(await asyncio.to_thread(self._model.continuation, prompt, **options))
            reply.results.append(generations[-1].result)
        answers = Answers(self._worker, generations, self._limit_s)
        if wanted.stream:
            events = reply.events(answers, wanted.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await until_left(request, reply.whole(answers)))


def create_app(worker: Worker, settings: Settings) -> Starlette:
    """The ASGI app of a worker that has been entered."""
    guard = Middleware(Guard, hosts=settings.hosts, api_key=settings.api_key, max_body_bytes=MAX_BODY_BYTES)
    return Starlette(
        routes=Server(worker, settings).routes(),
        middleware=[guard],
        exception_handlers={
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            RequestError: _on_error,
            GGUFMoeError: _on_error,
            TimeoutError: _on_error,
            Exception: _on_error,
        },
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(404, f"there is no {request.url.path[:80]}; GET / shows what there is.")
    return error_response(error.status_code, f"{request.method} is not for {request.url.path[:80]}.")


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_error(request: Request, error: Exception) -> Response:
    status, message, param = describe(error)
    if status == 500:
        unexpected = None if isinstance(error, GGUFMoeError) else error
        logger.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=unexpected)
    return error_response(status, message, param)


async def _read_json(request: Request) -> dict[str, Any]:
    """The body, an object. Raises RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can make a browser send other types here, but not this one.
        raise RequestError(415, "send the body with the header 'Content-Type: application/json'.")
    try:
        async with asyncio.timeout(BODY_LIMIT_S):
            body = json.loads(await request.body())
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {BODY_LIMIT_S:g} s.") from None
    except (ValueError, RecursionError) as e:
        raise RequestError(400, f"the body is not JSON ({str(e)[:80]}).") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object.")
    return body
