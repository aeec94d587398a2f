"""What stands before the app: who may ask, and how much a request may bring."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from gguf_moe.server.errors import error_response
from gguf_moe.server.requests import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health"})
"""What needs no key: the page has none before it is typed in."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Checks the Host header, the API key and the body's size of each request; pure ASGI.

    A page of another site can make a browser send requests to this machine, under a name of its own. So where
    hosts are given, only requests to these names are answered. api_key None lets everybody in.
    """

    def __init__(
        self, app: Any, *, hosts: Iterable[str] | None, api_key: str | None, max_body_bytes: int
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._api_key = api_key
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := self._refusal(scope["path"], Headers(scope=scope)):
            await error_response(*refusal)(scope, receive, send)
            return
        n_read = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal n_read
            message = await receive()
            n_read += len(message.get("body", b""))
            if n_read > self._max_body_bytes:
                raise RequestError(413, _too_large(self._max_body_bytes))
            return message

        await self._app(scope, counted, send)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host).lower() not in self._hosts:
            return 403, f"the host name {host[:80]!r} is not served here; allow it with --allow-host."
        if self._api_key is not None and path not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), self._api_key.encode()):
                return 401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._max_body_bytes:
            return 413, _too_large(self._max_body_bytes)
        return None


def _too_large(most: int) -> str:
    return f"the body has more than {most / (1 << 20):g} MiB; send less."


def _without_port(host: str) -> str:
    """The name of a Host header; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
