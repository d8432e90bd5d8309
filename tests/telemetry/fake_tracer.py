"""A tracer that keeps its spans."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from openrl.telemetry.tracing import NO_ATTRIBUTES, Attributes, SpanKind


@dataclass
class FakeSpan:
    context: str | None
    began_at: float
    parent: str | None
    links: tuple[str, ...]
    name: str = ""
    ended_at: float = 0.0
    attributes: dict[str, str | int | float] = field(default_factory=dict[str, str | int | float])
    error: str = ""

    def end(self, name: str, at: float, attributes: Attributes = NO_ATTRIBUTES, error: str = "") -> None:
        self.name, self.ended_at, self.attributes, self.error = name, at, dict(attributes), error


class FakeTracer:
    def __init__(self) -> None:
        self.spans: list[FakeSpan] = []

    def begin(
        self, name: str, at: float, parent: str | None = None, links: Sequence[str] = (), kind: SpanKind = "internal"
    ) -> FakeSpan:
        number = len(self.spans) + 1
        trace_id = f"{number:032x}" if parent is None else parent[3:35]
        self.spans.append(FakeSpan(f"00-{trace_id}-{number:016x}-01", at, parent, tuple(links)))
        return self.spans[-1]

    def close(self) -> None:
        pass


def trace_context(number: int) -> str:
    """Of a trace of its own, with a number above those of FakeTracer's."""
    return f"00-{number + 1000:032x}-{number + 1000:016x}-01"
