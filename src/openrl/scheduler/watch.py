"""Counts and logs what the scheduler is told and what it decides; decides nothing."""

import logging
from collections.abc import Callable

from prometheus_client import Counter, Histogram

from openrl.rpc.messages import Execute, ExecuteDone, Sample, WorkItem
from openrl.scheduler.actions import Action, Finish, MarkRunClosed, SendCommand
from openrl.scheduler.events import Event, WorkerReported
from openrl.telemetry.logs import get_logger, request_fields
from openrl.telemetry.metrics import Metrics
from openrl.telemetry.tracing import Tracer, span_attributes


class Watch:
    """Sees every event before it is handled, and every action before it is done.

    Built when logs are configured: lines below their level then cost nothing.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float], tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._log = get_logger(__name__).bind()
        self._is_verbose = self._log.is_enabled_for(logging.DEBUG)
        # Looking up the labels of a metric costs more than counting.
        self._waits: dict[str, Histogram] = {}
        self._ends: dict[tuple[str, str], Counter] = {}

    def saw(self, event: Event) -> None:
        """Something happened to the scheduler."""
        match event:
            case WorkerReported(_, ExecuteDone(_, outcomes)):
                for outcome in outcomes:
                    if not outcome.result_ref and not outcome.error:  # only a replay has neither
                        self._metrics.replayed_requests.inc()
                        self._metrics.replay_seconds.inc(outcome.busy_s)
            case _:
                pass

    def did(self, action: Action) -> None:
        """The scheduler decided something."""
        match action:
            case SendCommand(worker_id, Execute(_, _, items)):
                for item in items:
                    if not item.is_replay:
                        self._sent(worker_id, item)
            case SendCommand(worker_id, Sample(item)):
                self._sent(worker_id, item)
            case Finish():
                self._finished(action)
            case MarkRunClosed(run_id, tenant_id):
                self._metrics.run_gpu_seconds.remove((tenant_id, run_id))
            case _:
                pass

    def _sent(self, worker_id: str, item: WorkItem) -> None:
        """Gateways stamp requests by clocks of their own, which may be ahead."""
        now = self._clock()
        wait_s = max(now - item.created_at, 0.0)
        if item.kind not in self._waits:
            self._waits[item.kind] = self._metrics.queue_wait_seconds.labels(item.kind)
        self._waits[item.kind].observe(wait_s)
        if self._is_verbose:
            self._log.debug("request sent", worker_id=worker_id, kind=item.kind, wait_s=wait_s, **request_fields(item))

        if self._tracer is not None and item.trace_context is not None:
            span = self._tracer.begin("queue", now - wait_s, item.trace_context, kind="consumer")
            span.end(f"queue {item.kind}", now, {**span_attributes(item), "openrl.worker": worker_id})

    def _finished(self, finish: Finish) -> None:
        request, outcome = finish.request, finish.outcome
        self._count(finish)
        self._metrics.gpu_seconds.add((request.tenant_id,), request.kind, outcome.busy_s)
        run_id = request.run_id or request.source_run_id
        if run_id:
            self._metrics.run_gpu_seconds.add((request.tenant_id, run_id), request.kind, outcome.busy_s)
        if finish.state == "done":
            self._count_tokens(finish)
        if finish.state == "failed":
            log, event = self._log.warning, "request failed"
            if outcome.category == "user":
                log, event = self._log.info, "request failed by its client"
            log(event, kind=request.kind, error=outcome.error, **request_fields(request))
        elif self._is_verbose:
            times = {"busy_s": outcome.busy_s, "wall_s": outcome.wall_s}
            fields = request_fields(request)
            self._log.debug("request ended", kind=request.kind, state=finish.state, **times, **fields)

    def _count(self, finish: Finish) -> None:
        end = finish.state
        if end == "failed":
            end = "failed_user" if finish.outcome.category == "user" else "failed_server"
        labels = (finish.request.kind, end)
        if labels not in self._ends:
            self._ends[labels] = self._metrics.requests.labels(*labels)
        self._ends[labels].inc()

    def _count_tokens(self, finish: Finish) -> None:
        owner, outcome = (finish.request.tenant_id,), finish.outcome
        tokens = self._metrics.tokens
        if finish.request.kind != "sample":
            tokens.add(owner, finish.request.kind, outcome.num_tokens)
            return
        tokens.add(owner, "prefill", max(outcome.num_tokens - outcome.num_sampled_tokens, 0))
        tokens.add(owner, "cached_prefill", outcome.num_cached_tokens)
        tokens.add(owner, "sample", outcome.num_sampled_tokens)
