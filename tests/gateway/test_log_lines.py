import io
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from openrl.config import GatewayConfig
from openrl.telemetry.http import MeteredApp
from openrl.telemetry.http_traces import TracedApp
from openrl.telemetry.logs import configure_logs
from openrl.telemetry.metrics import Metrics, create_metrics
from tests.gateway.gateway_server import KEYS, GatewayServer
from tests.gateway.raw_client import create_owned, post, sample_body
from tests.telemetry.fake_tracer import FakeTracer

WRITTEN_WITHIN_S = 10.0


@dataclass(frozen=True)
class Logged:
    """A gateway with what is around it in a server."""

    server: GatewayServer
    metrics: Metrics
    tracer: FakeTracer
    stream: io.StringIO

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        """At least one: a line is written after the client has its answer."""
        deadline = time.monotonic() + WRITTEN_WITHIN_S
        while True:
            text = self.stream.getvalue()
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            found = [line for line in lines if line.items() >= wanted.items()]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.01)


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Logged]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    stream, metrics, tracer = io.StringIO(), create_metrics(), FakeTracer()
    configure_logs("gateway", "debug", stream)
    server = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5))
    app: Any = server.app
    server.app = MeteredApp(TracedApp(app, tracer), metrics, log_answers=True)  # pyright: ignore[reportAttributeAccessIssue]
    server.start()
    yield Logged(server, metrics, tracer, stream)
    server.stop()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def client(server: GatewayServer, tenant: str) -> httpx.Client:
    return httpx.Client(base_url=f"{server.url}/api/v1/", headers={"x-api-key": KEYS[tenant]})


def test_lines_about_a_request_name_it_its_run_its_tenant_and_its_trace(logged: Logged):
    for tenant in ("alice", "bob"):
        with client(logged.server, tenant) as http:
            owned = create_owned(http)
            step = post(http, "optim_step", {"model_id": owned.run_id, "seq_id": 3, "adam_params": {}})
            post(http, "retrieve_future", {"request_id": step["request_id"]})
        about = {"request_id": step["request_id"], "run_id": owned.run_id, "tenant_id": tenant}
        (call,) = logged.lines(route="/api/v1/optim_step", tenant_id=tenant)
        (poll,) = logged.lines(route="/api/v1/retrieve_future", request_id=step["request_id"])
        (span,) = [
            each for each in logged.tracer.spans if each.attributes.get("openrl.request_id") == step["request_id"]
        ]
        assert call.items() >= about.items()
        assert poll.items() >= about.items()
        assert span.context is not None
        assert call["trace_id"] == poll["trace_id"] == span.context[3:35]
        row = logged.server.call(logged.server.store.get_request(tenant, step["request_id"]))
        assert row.trace_context == span.context
        (sample,) = logged.lines(route="/api/v1/asample", tenant_id=tenant)
        assert sample["request_id"] == owned.request_id


def test_a_call_that_fails_unexpectedly_is_named_too(logged: Logged, monkeypatch: pytest.MonkeyPatch):
    with client(logged.server, "alice") as http:
        owned = create_owned(http)

        async def broken(*_: object) -> None:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(logged.server.store, "enqueue", broken)
        assert http.post("asample", json=sample_body(owned.sampler_id, 7)).status_code == 500
    (line,) = logged.lines(event="call failed")
    assert (line["tenant_id"], line["level"]) == ("alice", "error")
    assert line["request_id"]
    assert "out of luck" in line["exception"]
    assert logged.lines(event="answered", status=500)  # what this line tells is counted before it
    assert b'openrl_rejected_requests_total{code="internal"} 1.0' in logged.metrics.render()


def test_what_is_refused_is_counted_by_its_code(logged: Logged):
    with client(logged.server, "alice") as http:
        assert http.get("nowhere").status_code == 404
        assert http.get("samplers/unknown").status_code == 404
        assert http.post("asample", json={"seq_id": 1}).status_code == 400
    shown = logged.metrics.render().decode()
    assert 'openrl_rejected_requests_total{code="not_found"} 2.0' in shown
