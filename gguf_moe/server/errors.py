"""Errors in OpenAI's shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from gguf_moe.errors import (
    BusyError,
    ConstraintError,
    ContextFullError,
    GGUFMoeError,
    OptionError,
    QueueFullError,
    TemplateError,
)
from gguf_moe.server.requests import RequestError

_STATUS: dict[type[Exception], int] = {
    OptionError: 400,
    TemplateError: 400,
    ContextFullError: 400,
    ConstraintError: 400,
    QueueFullError: 429,
    BusyError: 503,
    TimeoutError: 504,
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
RETRY_AFTER_S = "1"


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """A whole answer that is an error."""
    headers = {"Retry-After": RETRY_AFTER_S} if status in (429, 503) else None
    return JSONResponse(error_body(status, message, param), status, headers)


def describe(error: BaseException) -> tuple[int, str, str | None]:
    """Status, message and field of whatever went wrong. What is nobody's fault but ours says no details."""
    if isinstance(error, RequestError):
        return error.status, str(error), error.param
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status, str(error), None
    if isinstance(error, GGUFMoeError):
        return 500, str(error), None
    return 500, "the server failed at this request; its log says why.", None
