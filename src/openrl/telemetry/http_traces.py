"""Spans of calls to an ASGI app: of those that queue work, and of those whose client traces them."""

import time

from openrl.telemetry.http import App, Message, Receive, Scope, Send, log_fields, note, route_of
from openrl.telemetry.logs import trace_id_of
from openrl.telemetry.tracing import Span, Tracer

_TRACEPARENT = b"traceparent"
_FIELDS = {"request_id": "openrl.request_id", "run_id": "openrl.run_id", "tenant_id": "openrl.tenant_id"}


class CallTrace:
    """The trace of one call; begins when somebody asks for it, as most calls are polls, which belong to none."""

    def __init__(self, tracer: Tracer, scope: Scope) -> None:
        self._tracer = tracer
        self._scope = scope
        self._began_at = time.time()
        self._span: Span | None = None
        self.status = 0
        parent = next((value for name, value in scope["headers"] if name == _TRACEPARENT), None)
        self._parent = None if parent is None else parent.decode("latin-1")
        if self._parent is not None:
            self._begin()

    @property
    def context(self) -> str | None:
        """For the spans of what the call queues."""
        return (self._span or self._begin()).context

    def end(self) -> None:
        """The call is answered."""
        if self._span is None:
            return
        fields = log_fields(self._scope)
        attributes: dict[str, str | int | float] = {
            name: fields[field] for field, name in _FIELDS.items() if fields.get(field)
        }
        route = route_of(self._scope)
        attributes |= {
            "http.request.method": self._scope["method"],
            "http.route": route,
            "http.response.status_code": self.status,
        }
        error = self._scope.get("error_code", "") if self.status >= 500 else ""
        self._span.end(f"{self._scope['method']} {route}", time.time(), attributes, error)

    def _begin(self) -> Span:
        self._span = self._tracer.begin("call", self._began_at, self._parent, kind="server")
        if self._span.context is not None:
            note(self._scope, trace_id=trace_id_of(self._span.context))
        return self._span


class TracedApp:
    """An ASGI app around another one, which finds the CallTrace in its scope under "trace"."""

    def __init__(self, app: App, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = scope["trace"] = CallTrace(self._tracer, scope)

        async def note_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            trace.end()
