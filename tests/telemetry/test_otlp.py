from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from openrl.config import TelemetryConfig
from openrl.errors import InvalidRequest
from openrl.telemetry import tracing
from openrl.telemetry.http import note
from openrl.telemetry.http_traces import TracedApp
from openrl.telemetry.otlp import OtlpTracer
from tests.telemetry.fake_tracer import FakeTracer, trace_context
from tests.telemetry.otlp_receiver import OtlpReceiver


def test_a_span_arrives_with_its_times_attributes_and_links():
    receiver = OtlpReceiver()
    tracer = OtlpTracer(receiver.url + "/", 1.0, "openrl-test")
    span = tracer.begin("work", 100.0, trace_context(1), [trace_context(2), "no context"])
    assert span.context is not None
    assert span.context[3:35] == trace_context(1)[3:35]
    span.end("work of a kind", 101.5, {"openrl.tenant_id": "alice"})
    tracer.close()
    receiver.close()
    (received,) = receiver.spans
    assert (received.service, received.name, received.tenant) == ("openrl-test", "work of a kind", "alice")
    assert (received.began_ns, received.ended_ns) == (100_000_000_000, 101_500_000_000)
    assert received.parent_id == trace_context(1)[36:52]
    assert received.links == (trace_context(2)[3:35],)


def test_what_is_not_sampled_has_no_context_and_goes_nowhere():
    receiver = OtlpReceiver()
    tracer = OtlpTracer(receiver.url, 0.0, "openrl-test")
    unsampled = tracer.begin("work", 100.0)
    assert unsampled.context is None
    unsampled.end("work", 101.0)
    # Who calls has the last word, either way.
    assert tracer.begin("work", 100.0, trace_context(1)).context is not None
    refused = OtlpTracer(receiver.url, 1.0, "openrl-test")
    assert refused.begin("work", 100.0, trace_context(1)[:-1] + "0").context is None
    for each in (tracer, refused):
        each.close()
    receiver.close()
    assert receiver.spans == []


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-xyz-1-01", f"00-{'0' * 32}-{'0' * 16}-01", f"ff-{'a' * 32}-{'b' * 16}-01"]
)
def test_a_parent_that_is_none_begins_a_new_trace(header: str):
    tracer = OtlpTracer("http://127.0.0.1:9", 1.0, "openrl-test")
    context = tracer.begin("work", 100.0, header).context
    assert context is not None
    assert "a" * 32 not in context


def test_a_collector_that_is_away_does_not_hold_up_the_end():
    tracer = OtlpTracer("http://127.0.0.1:9", 1.0, "openrl-test")
    tracer.begin("work", 100.0).end("work", 101.0)
    tracer.close()
    assert tracer.begin("work", 100.0).context is not None  # and what comes too late does no harm


def test_without_an_endpoint_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with tracing.tracing(TelemetryConfig(), "openrl-test") as tracer:
        assert tracer is None


def test_the_usual_variable_names_the_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert TelemetryConfig().otlp_endpoint == "http://collector:4318"
    assert TelemetryConfig(otlp_endpoint="http://other:4318").otlp_endpoint == "http://other:4318"


def test_packages_that_are_missing_are_said_so(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'opentelemetry.sdk'", name="opentelemetry.sdk")

    monkeypatch.setattr(tracing, "import_module", missing)
    with pytest.raises(InvalidRequest, match=r"openrl\[telemetry\]"):
        tracing.create_tracer(TelemetryConfig(otlp_endpoint="http://collector:4318"), "openrl-test")


async def queueing(scope: Scope, receive: Receive, send: Send) -> None:
    """Queues work at /work, answers polls elsewhere."""
    if scope["path"] == "/work":
        assert scope["trace"].context
        note(scope, request_id="q1", tenant_id="alice")
    await PlainTextResponse("ok")(scope, receive, send)


async def test_calls_that_queue_work_are_traced_and_polls_only_where_their_client_traces_them():
    tracer = FakeTracer()
    app: Any = TracedApp(queueing, tracer)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        await client.get("/poll")
        assert tracer.spans == []
        await client.post("/work")
        await client.get("/poll", headers={"traceparent": trace_context(1)})
    work, poll = tracer.spans
    assert (work.parent, poll.parent) == (None, trace_context(1))
    assert work.attributes["openrl.request_id"] == "q1"
    assert work.attributes["openrl.tenant_id"] == "alice"
    assert work.attributes["http.response.status_code"] == 200
    assert 0 < work.began_at <= work.ended_at
