"""The answer to a request for completions: events as they come, or one object at the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from gguf_moe.completions import usage
from gguf_moe.generate import Result
from gguf_moe.server.choices import Choice
from gguf_moe.server.errors import describe, error_body
from gguf_moe.server.worker import Answers

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Reply:
    """head: what all objects begin with. n: so many choices, one after the other, share a prompt."""

    def __init__(self, head: dict[str, Any], choices: Sequence[Choice], n: int):
        self._head = head
        self._choices = choices
        self._n = n
        self.results: list[Result] = []
        """Of each choice; they grow while the answers come."""

    async def events(self, answers: Answers, include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events. An error becomes the last one, as the status is gone already."""
        try:
            async with aclosing(self._chunks(answers)) as chunks:
                async for chunk in chunks:
                    yield _event(self._head | {"choices": [chunk]})
            if include_usage:
                yield _event(self._head | {"choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except Exception as error:
            status, message, param = describe(error)
            if status == 500:
                logger.error("a stream failed", exc_info=error)
            yield _event(error_body(status, message, param))

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The object that has all choices."""
        async with aclosing(self._chunks(answers)) as chunks:
            async for _ in chunks:
                pass
        return self._head | {"choices": [c.whole() for c in self._choices], "usage": self._usage()}

    async def _chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of all choices. Stops the generations when it is closed."""
        try:
            for choice in self._choices:
                for chunk in choice.begin():
                    yield chunk
            async with aclosing(answers.heard()) as heard:
                async for i, piece in heard:
                    choice = self._choices[i]
                    for chunk in choice.push(piece) if piece else choice.end(self.results[i].finish_reason):
                        yield chunk
        finally:
            answers.close()

    def _usage(self) -> dict[str, Any]:
        return usage(*self.results, n=self._n)


async def until_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but stop it when the client leaves; then raises ClientDisconnect."""
    task, left = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
