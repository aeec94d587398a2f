"""`gguf-moe serve`: a model behind OpenAI's HTTP protocol."""

from __future__ import annotations

import ipaddress
import math
import socket
from pathlib import Path
from typing import Any

import click

from gguf_moe.cli.common import DEMO_MODEL, ProgressLine, load, model_or_demo_option, runtime_options
from gguf_moe.errors import GGUFMoeError, OptionError

GRACE_S = 5
"""How long open answers may go on after Ctrl-C."""


@click.command(short_help="Answer HTTP requests in OpenAI's protocol.")
@model_or_demo_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes any.")
@click.option(
    "--parallel", default=4, show_default=True, type=click.IntRange(1, 256), help="Answers written at once."
)
@click.option(
    "--queue",
    "n_waiting",
    default=64,
    show_default=True,
    type=click.IntRange(0),
    help="Requests that may wait.",
)
@click.option(
    "--api-key", envvar="GGUF_MOE_API_KEY", help="Key that clients must send.  [env: GGUF_MOE_API_KEY]"
)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Host name that clients may use; * for all."
)
@click.option(
    "--timeout",
    "limit_s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds that an answer may take.",
)
@runtime_options
def serve(
    path: str | None,
    host: str,
    port: int,
    parallel: int,
    n_waiting: int,
    api_key: str | None,
    hosts: tuple[str, ...],
    limit_s: float,
    runtime: dict[str, Any],
) -> None:
    """Answer HTTP requests in OpenAI's protocol: /v1/chat/completions, /v1/completions, /v1/models.

    The page at / is a small chat. --ctx is for each answer; so many KV caches are kept.
    """
    if "" in (host, api_key):
        raise OptionError("--host and --api-key must not be empty: anybody could use the server.")
    if not math.isfinite(limit_s):
        raise OptionError(f"--timeout is {limit_s}, but must be a number of seconds.")
    try:
        import uvicorn

        from gguf_moe.server.app import Settings, create_app
        from gguf_moe.server.worker import Worker
    except ModuleNotFoundError as e:
        raise OptionError(
            f"serve needs the package {e.name}; install it with: pip install 'gguf-moe[server]'"
        ) from None
    with _listen(host, port) as listener:
        address = listener.getsockname()[0]
        settings = Settings(_host_names(address, host, hosts), api_key, limit_s)
        path = str(DEMO_MODEL) if path is None else path
        loaded = load(path, runtime | {"parallel": parallel}, ProgressLine())
        with loaded as model, Worker(model, n_waiting) as worker:
            app = create_app(worker, settings)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
            _say(model.path, listener, model.n_parallel, model.n_ctx, api_key)
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        reason = str(e.strerror).partition(" (while")[0]
        raise GGUFMoeError(
            f"cannot listen on {host} port {port} ({reason}); choose another address (--host, --port)."
        ) from None


def _is_local(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _host_names(address: str, host: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names that requests may be sent to; None for all. Whoever opens the server to others names it."""
    from gguf_moe.server.guard import LOCAL_HOSTS

    if "*" in allowed or (not allowed and not _is_local(address)):
        return None
    return (*LOCAL_HOSTS, host, *allowed)


def _say(path: Path, listener: socket.socket, n_parallel: int, n_ctx: int, api_key: str | None) -> None:
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    answers = f"{n_parallel} answers at a time" if n_parallel > 1 else "one answer at a time"
    click.echo(
        f"{path.name} at http://{shown}:{port} ({answers}, {n_ctx} tokens each; Ctrl-C stops)", err=True
    )
    if api_key is None and not _is_local(address):
        click.echo("Anybody who reaches this machine can use it; --api-key asks for a key.", err=True)
