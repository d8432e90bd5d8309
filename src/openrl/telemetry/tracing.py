"""Spans of requests on their way, for a collector of OpenTelemetry; without one nothing is made.

A trace context is the text of a W3C `traceparent`: it travels in headers, rows and messages.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Literal, Protocol, cast

from openrl.config import TelemetryConfig
from openrl.errors import InvalidRequest
from openrl.telemetry.logs import OfRequest

SpanKind = Literal["internal", "server", "consumer"]
Attributes = Mapping[str, str | int | float]
NO_ATTRIBUTES: Attributes = {}


class Span(Protocol):
    """Something that has begun and not ended."""

    @property
    def context(self) -> str | None:
        """For spans below this one; None where it is not recorded, and so nothing below it is."""
        ...

    def end(self, name: str, at: float, attributes: Attributes = NO_ATTRIBUTES, error: str = "") -> None:
        """What it was; `at`: seconds since the epoch."""
        ...


class Tracer(Protocol):
    """Makes the spans of one part of the server. From any thread; sends them in one of its own."""

    def begin(
        self, name: str, at: float, parent: str | None = None, links: Sequence[str] = (), kind: SpanKind = "internal"
    ) -> Span:
        """A span below `parent`, or the first of a trace. `links`: contexts of spans that it has to do with."""
        ...

    def close(self) -> None:
        """Send what there is, for a few seconds at most; nothing is recorded from here on."""
        ...


def span_attributes(request: OfRequest) -> dict[str, str | int | float]:
    """What every span of a request says of it."""
    fields = {"request_id": request.request_id, "run_id": request.run_id, "tenant_id": request.tenant_id}
    return {f"openrl.{name}": value for name, value in fields.items() if value}


@contextmanager
def tracing(config: TelemetryConfig, service: str, sample_ratio: float = 1.0) -> Generator[Tracer | None]:
    """As `create_tracer`; what it has at the end is sent."""
    tracer = create_tracer(config, service, sample_ratio)
    try:
        yield tracer
    finally:
        if tracer is not None:
            tracer.close()


def create_tracer(config: TelemetryConfig, service: str, sample_ratio: float = 1.0) -> Tracer | None:
    """The tracer of a part, as "openrl-gateway"; None where traces go nowhere, and then nothing of them costs anything.

    `sample_ratio`: of the traces that begin here. Raises InvalidRequest where the packages for it are not installed.
    """
    if not config.otlp_endpoint:
        return None
    try:
        otlp = import_module("openrl.telemetry.otlp")  # what it needs is optional
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"telemetry.otlp_endpoint is set, but {error.name} is not installed: pip install 'openrl[telemetry]'"
        ) from error
    return cast(Tracer, otlp.OtlpTracer(config.otlp_endpoint, sample_ratio, service))
