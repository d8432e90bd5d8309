"""Sends spans by OTLP over HTTP; needs the packages of the extra `telemetry`."""

import threading
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from openrl.telemetry.tracing import NO_ATTRIBUTES, Attributes, SpanKind

_CLOSE_S = 3.0
_KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "consumer": trace.SpanKind.CONSUMER,
}


class OtlpSpan:
    """`Span` over the SDK's."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> str | None:
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def end(self, name: str, at: float, attributes: Attributes = NO_ATTRIBUTES, error: str = "") -> None:
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_nanoseconds(at))


class OtlpTracer:
    """`Tracer` over the SDK; one provider each, so that nothing is global."""

    def __init__(self, endpoint: str, sample_ratio: float, service: str) -> None:
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(sample_ratio),
            resource=Resource.create({"service.name": service}),
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("openrl")

    def begin(
        self, name: str, at: float, parent: str | None = None, links: Sequence[str] = (), kind: SpanKind = "internal"
    ) -> OtlpSpan:
        above = None if parent is None else _read(parent)
        linked = [context for each in links if (context := _read(each)) is not None]
        span = self._tracer.start_span(
            name,
            # Never the context of this thread: spans are where rows and messages say.
            context=trace.set_span_in_context(NonRecordingSpan(above or trace.INVALID_SPAN_CONTEXT)),
            kind=_KINDS[kind],
            links=[Link(context) for context in linked],
            start_time=_nanoseconds(at),
        )
        return OtlpSpan(span)

    def close(self) -> None:
        # The provider would try for half a minute to reach a collector that is away.
        giving_up = threading.Timer(_CLOSE_S, self._exporter.shutdown)
        giving_up.daemon = True
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _read(traceparent: str) -> SpanContext | None:
    """The context of a W3C traceparent; None for what is none."""
    parts = traceparent.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:4])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
    return context if context.is_valid else None
