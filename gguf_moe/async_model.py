"""A model for asyncio: the same methods, awaited. A thread does the work, so that the loop stays free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gguf_moe.generate import Piece

if TYPE_CHECKING:
    from gguf_moe.model import Model

T = TypeVar("T")
_END = object()


class AsyncModel:
    """Calls wait for each other, in their order, where Model raises BusyError. Use it in one event loop.

    A task that is cancelled stops its generation within a step, and the next one begins. Who leaves a stream
    early closes it (contextlib.aclosing). The model stays the caller's to close, when no task uses it.
    """

    def __init__(self, model: Model):
        self.model = model
        self._turn = asyncio.Lock()

    def generate(self, prompt: str | Sequence[int], **options: Any) -> AsyncIterator[Piece]:
        """Continue a prompt, piece by piece; options and errors as for Model.generate."""
        return self._stream(partial(self.model.generate, prompt, **options))

    async def create_completion(self, prompt: str | Sequence[int], **options: Any) -> dict[str, Any]:
        """A completion in OpenAI's shape; options as for `generate`."""
        return await self._whole(partial(self.model.create_completion, prompt, **options))

    def stream_completion(self, prompt: str | Sequence[int], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a completion."""
        return self._stream(partial(self.model.create_completion, prompt, stream=True, **options))

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> dict[str, Any]:
        """An answer in OpenAI's shape; options as for Model.create_chat_completion."""
        return await self._whole(partial(self.model.create_chat_completion, messages, **options))

    def stream_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The chunks of an answer."""
        return self._stream(partial(self.model.create_chat_completion, messages, stream=True, **options))

    async def _whole(self, call: Callable[..., Any]) -> dict[str, Any]:
        cancel = threading.Event()
        async with self._turn:
            return cast(dict[str, Any], await _in_thread(partial(call, cancel=cancel), cancel))

    async def _stream(self, call: Callable[..., Any]) -> AsyncIterator[Any]:
        cancel = threading.Event()
        async with self._turn:
            iterator = await _in_thread(partial(call, cancel=cancel), cancel)
            try:
                while (item := await _in_thread(partial(next, iterator, _END), cancel)) is not _END:
                    yield item
            finally:
                iterator.close()


async def _in_thread(call: Callable[[], T], cancel: threading.Event) -> T:
    """Call in a thread. If the task is cancelled, `cancel` is set, and the thread waited for."""
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel.set()
        await asyncio.wait([future])
        future.exception()  # or the loop complains that nobody asked
        raise
