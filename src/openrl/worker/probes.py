"""Answers probes from threads that touch neither the device nor the process's loop."""

import contextlib
from collections.abc import Generator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Protocol

from openrl.errors import Unavailable
from openrl.telemetry.metrics import Metrics, WorkerMetrics

_SILENCE_S = 10.0


class Probed(Protocol):
    """What is asked of a worker, from any thread; nothing of it waits."""

    def is_started(self) -> bool:
        """Whether the models are loaded."""
        ...

    def is_ready(self) -> bool:
        """Whether it should get work: a scheduler has it, and it is not drained."""
        ...

    def stillness_s(self) -> float:
        """For how long its loop or its compute thread has not moved."""
        ...

    def ask_to_drain(self) -> None:
        """Hand everything over and stay empty."""
        ...


@contextlib.contextmanager
def serve_probes(
    address: str, probed: Probed, metrics: Metrics | WorkerMetrics, longest_step_s: float
) -> Generator[str]:
    """Listen at host:port until the block ends, or nowhere where it is empty; gives the URL.

    GET /startupz, /readyz, /livez, /metrics; GET or POST /drain, which answers at once. Raises Unavailable where the
    address cannot be listened on.
    """
    if not address:
        yield ""
        return
    host, _, port = address.rpartition(":")
    try:
        server = _Server((host, int(port)), partial(_Handler, probed, metrics, longest_step_s))
    except OSError as error:
        raise Unavailable(f"cannot listen for probes on {address}: {error.strerror}") from error
    thread = Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    timeout = _SILENCE_S

    def __init__(self, probed: Probed, metrics: Metrics | WorkerMetrics, longest_step_s: float, *args: Any) -> None:
        self._probed = probed
        self._metrics = metrics
        self._longest_step_s = longest_step_s
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer a probe; a preStop hook can send nothing but GET, so /drain takes it too."""
        probed = self._probed
        match self.path.partition("?")[0]:
            case "/startupz" | "/healthz":
                self._say(probed.is_started(), "loading the models")
            case "/readyz":
                self._say(probed.is_ready(), "loading, without a scheduler, or drained")
            case "/livez":
                stillness_s = probed.stillness_s()
                self._say(stillness_s <= self._longest_step_s, f"has not moved for {stillness_s:.0f} s")
            case "/metrics":
                self._answer(HTTPStatus.OK, self._metrics.render(), "text/plain; version=0.0.4")
            case "/drain":
                probed.ask_to_drain()
                self._say(True, "")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    def do_POST(self) -> None:
        """Drain."""
        if self.path == "/drain":
            self.do_GET()
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes are not logged."""

    def _say(self, is_well: bool, otherwise: str) -> None:
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, f"{'ok' if is_well else otherwise}\n".encode(), "text/plain")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)
