"""Serves an ASGI app on a socket of ours, without taking over the process's signals."""

import contextlib
import resource
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from openrl.config import GatewayConfig
from openrl.errors import Unavailable
from openrl.gateway.connection import WINDOW_S, guarded_protocol
from openrl.gateway.secure_headers import SECURE_HEADERS

_BACKLOG = 4096
_KEEP_ALIVE_S = 75
_GRACE_S = 3
_OTHER_FILES = 512
"""That a process opens beside its connections."""


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves SIGTERM and SIGINT to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def create_http_server(app: Any, bounds: GatewayConfig, window_s: float = WINDOW_S) -> HttpServer:
    """A server for the app; `serve(sockets=[...])` runs until `should_exit` is set, then for 3 s at most.

    `window_s`: over how long the rates of clients are measured.
    """
    _allow_files(bounds.max_connections + _OTHER_FILES)
    config = uvicorn.Config(
        app,
        http=guarded_protocol(bounds, window_s),
        headers=[(name.decode(), value.decode()) for name, value in SECURE_HEADERS],
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # Long polls outlast any sensible wait; their clients ask again.
        timeout_graceful_shutdown=_GRACE_S,
    )
    return HttpServer(config)


def _allow_files(number: int) -> None:
    """Raise this process's limit of open files, as far as it may: a connection that cannot be accepted waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises Unavailable with what stands in the way."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what listens there, or give --port 0"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients reach the socket: the wildcard address is shown as this machine's own."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
