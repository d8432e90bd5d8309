"""Counts and logs the answers of an ASGI app, and serves the counts at /metrics."""

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from prometheus_client import Counter, Histogram

from openrl.telemetry.logs import get_logger
from openrl.telemetry.metrics import Metrics

_log = get_logger(__name__)
_SDK_METHOD = b"x-sdk-method"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def note(scope: Scope, **fields: str) -> None:
    """Lines about this call say this too.

    The scope holds it, not a context variable: what a call starts for others as well, such as a commit, would take
    that along.
    """
    scope.setdefault("log_fields", {}).update(fields)


def log_fields(scope: Scope) -> Mapping[str, str]:
    """What was noted of a call."""
    return scope.get("log_fields", {})


class MeteredApp:
    """An ASGI app around another one."""

    def __init__(self, app: App, metrics: Metrics, log_answers: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._log_answers = log_answers
        # Looking up the labels of a metric costs more than counting.
        self._labelled: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/metrics":
            await _answer(send, self._metrics.render())
        else:
            await self._measure(scope, receive, send)

    async def _measure(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        labels = (scope["method"], route_of(scope), status)
        method, route, _ = labels
        if labels not in self._labelled:
            requests = self._metrics.http_requests.labels(method, route, str(status))
            self._labelled[labels] = requests, self._metrics.http_seconds.labels(route)
        requests, times = self._labelled[labels]
        requests.inc()
        times.observe(seconds)
        if "error_code" in scope:
            self._metrics.rejected_requests.labels(scope["error_code"]).inc()
        if self._log_answers:
            fields = {"method": method, "route": route, "status": status, "sdk": _header(scope, _SDK_METHOD)}
            _log.debug("answered", ms=seconds * 1e3, **fields, **log_fields(scope))


def route_of(scope: Scope) -> str:
    """The path without its ids, which would give every run a metric of its own; the router leaves them in the scope."""
    if "endpoint" not in scope:
        return "unmatched"
    if hasattr(scope["endpoint"], "template"):
        return scope["endpoint"].template
    path: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(str(value), f"{{{name}}}")
    return path


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


async def _answer(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", b"text/plain; version=0.0.4"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
