"""A collector of OpenTelemetry for tests: takes traces by OTLP over HTTP and keeps them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: none
    links: tuple[str, ...]  # trace ids
    attributes: dict[str, str]
    began_ns: int
    ended_ns: int

    @property
    def tenant(self) -> str:
        return self.attributes.get("openrl.tenant_id", "")


class OtlpReceiver:
    """Listens on a free port of this machine until it is closed."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self._came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()
                receiver._take(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the standard library's name)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def wait_for(self, is_there: Callable[[list[ReceivedSpan]], object], timeout_s: float = 60.0) -> None:
        """Until the spans are as wanted."""
        deadline = time.monotonic() + timeout_s
        with self._came:
            while not is_there(self.spans):
                assert self._came.wait(deadline - time.monotonic()), [(each.service, each.name) for each in self.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        found: list[ReceivedSpan] = []
        for of_resource in request.resource_spans:
            resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for of_scope in of_resource.scope_spans:
                found += [
                    ReceivedSpan(
                        service=resource["service.name"],
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        links=tuple(link.trace_id.hex() for link in span.links),
                        attributes={each.key: _text(each.value) for each in span.attributes},
                        began_ns=span.start_time_unix_nano,
                        ended_ns=span.end_time_unix_nano,
                    )
                    for span in of_scope.spans
                ]
        with self._came:
            self.spans += found
            self._came.notify_all()


def _text(value: AnyValue) -> str:
    return str(value.int_value) if value.HasField("int_value") else value.string_value
