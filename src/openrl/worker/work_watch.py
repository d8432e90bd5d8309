"""Counts and traces what the compute thread does; called there."""

import time
from collections.abc import Callable, Sequence

from openrl.errors import RequestFailed
from openrl.rpc.messages import Execute, WorkItem
from openrl.sampling.base import BatchPart
from openrl.telemetry.metrics import WorkerMetrics
from openrl.telemetry.tracing import Attributes, Tracer, span_attributes
from openrl.worker.deliverer import PendingOutcome
from openrl.worker.timeshare import Side


class WorkWatch:
    """Lives as long as the process; `clock` gives seconds since the epoch."""

    def __init__(
        self, metrics: WorkerMetrics, tracer: Tracer | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._tracer = tracer
        self._clock = clock
        self._turns = {side: metrics.turn_seconds.labels(side) for side in ("training", "sampling")}
        self._pass_requests = metrics.pass_requests

    def turned(self, side: Side, seconds: float) -> None:
        """One side had the device."""
        self._turns[side].observe(seconds)

    def executed(self, command: Execute, pending: Sequence[PendingOutcome]) -> None:
        """A training command was computed: a span of it, and one of each request in that request's own trace.

        The command's span is in a trace of its own, linked with those of its requests: they may be of several tenants.
        """
        self._pass_requests.labels(command.kind).observe(len(command.items))
        contexts = [item.trace_context for item in command.items if item.trace_context is not None]
        if self._tracer is None or not contexts:
            return
        now = self._clock()
        began_at = now - pending[0].wall_s
        batch = self._tracer.begin("batch", began_at, links=contexts)
        for item, outcome in zip(command.items, pending, strict=True):
            self._request_ended(self._tracer, item, outcome, now, () if batch.context is None else (batch.context,))
        num_tokens = sum(outcome.num_tokens for outcome in pending)
        attributes: Attributes = {"openrl.num_requests": len(pending), "openrl.num_tokens": num_tokens}
        batch.end(f"batch {command.kind}", now, attributes)

    def sampled(self, item: WorkItem, outcome: PendingOutcome, part: BatchPart | None = None) -> None:
        """A sample request was computed: a span in its own trace, and one of its `part` in the batch.

        The latter is in a trace of its own, linked with the request and with others that were there, of any tenant.
        """
        if self._tracer is None or item.trace_context is None:
            return
        now = self._clock()
        if part is None:
            self._request_ended(self._tracer, item, outcome, now)
            return
        batch = self._tracer.begin("batch", now - part.seconds, links=(item.trace_context, *part.shared_with))
        self._request_ended(self._tracer, item, outcome, now, () if batch.context is None else (batch.context,))
        attributes: Attributes = {
            "openrl.num_prefill_tokens": part.num_prefill_tokens,
            "openrl.num_decode_steps": part.num_decode_steps,
            "openrl.max_sequences": part.max_sequences,
            "openrl.max_adapters": part.max_adapters,
        }
        batch.end("batch sample", now, attributes)

    def _request_ended(
        self, tracer: Tracer, item: WorkItem, outcome: PendingOutcome, now: float, links: Sequence[str] = ()
    ) -> None:
        if item.trace_context is None:
            return
        span = tracer.begin("execute", now - outcome.wall_s, item.trace_context, links, "consumer")
        attributes = {
            **span_attributes(item),
            "openrl.num_tokens": outcome.num_tokens,
            "openrl.busy_s": outcome.busy_s,
        }
        failure = outcome.produce if isinstance(outcome.produce, RequestFailed) else ""
        span.end(f"execute {item.kind}", now, attributes, str(failure))
