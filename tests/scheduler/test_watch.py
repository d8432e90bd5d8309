import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from openrl.config import TelemetryConfig
from openrl.rpc.messages import Execute, ExecuteDone, Outcome, Sample, WorkItem
from openrl.scheduler.actions import Finish, MarkRunClosed, SendCommand
from openrl.scheduler.events import WorkerReported
from openrl.scheduler.watch import Watch
from openrl.store.base import RequestRow
from openrl.telemetry.logs import configure_logs
from openrl.telemetry.metrics import Metrics, create_metrics
from tests.telemetry.fake_tracer import FakeTracer

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
ROW = RequestRow("q1", "alice", "s1", "forward_backward", "run:r1:1", 1, 100.0, run_id="r1", trace_context=TRACE)
ITEM = WorkItem("q1", "alice", "forward_backward", "p", run_id="r1", created_at=100.0, trace_context=TRACE)


@pytest.fixture(autouse=True)
def _restored_logs() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def samples(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def watch_with(**bounds: int) -> tuple[Watch, Metrics]:
    metrics = create_metrics(TelemetryConfig(**bounds))  # pyright: ignore[reportArgumentType]
    return Watch(metrics, lambda: 102.0), metrics


def test_queue_waits_are_counted_by_kind_and_replays_have_none():
    watch, metrics = watch_with()
    replay = replace(ITEM, is_replay=True)
    watch.did(SendCommand("w#1", Execute(1, "forward_backward", (ITEM, replay))))
    watch.did(SendCommand("w#1", Sample(replace(ITEM, kind="sample", created_at=103.0))))  # a clock that is ahead
    shown = samples(metrics)
    assert shown['openrl_queue_wait_seconds_sum{kind="forward_backward"}'] == 2.0
    assert shown['openrl_queue_wait_seconds_count{kind="forward_backward"}'] == 1.0
    assert shown['openrl_queue_wait_seconds_sum{kind="sample"}'] == 0.0


def test_what_a_request_used_is_counted_by_tenant_kind_and_run():
    watch, metrics = watch_with(run_series=8)
    watch.did(Finish(ROW, "done", Outcome("q1", "ref", num_tokens=7, busy_s=0.5), "tiny"))
    sample = replace(ROW, kind="sample", tenant_id="bob", run_id="", source_run_id="r2")
    used = Outcome("q2", "ref", num_tokens=10, num_sampled_tokens=4, num_cached_tokens=3, busy_s=0.25)
    watch.did(Finish(sample, "done", used, "tiny"))
    shown = samples(metrics)
    assert {name: value for name, value in shown.items() if "gpu_seconds" in name or "openrl_tokens" in name} == {
        'openrl_gpu_seconds_total{kind="forward_backward",tenant="alice"}': 0.5,
        'openrl_gpu_seconds_total{kind="sample",tenant="bob"}': 0.25,
        'openrl_run_gpu_seconds_total{kind="forward_backward",run="r1",tenant="alice"}': 0.5,
        'openrl_run_gpu_seconds_total{kind="sample",run="r2",tenant="bob"}': 0.25,
        'openrl_tokens_total{kind="forward_backward",tenant="alice"}': 7.0,
        'openrl_tokens_total{kind="prefill",tenant="bob"}': 6.0,
        'openrl_tokens_total{kind="sample",tenant="bob"}': 4.0,
        'openrl_tokens_total{kind="cached_prefill",tenant="bob"}': 3.0,
    }
    watch.did(MarkRunClosed("r1", "alice", "s1", None))
    assert not [name for name in samples(metrics) if 'run="r1"' in name]


def test_ids_of_runs_are_labels_only_where_that_is_asked_for():
    watch, metrics = watch_with()
    watch.did(Finish(ROW, "done", Outcome("q1", "ref", num_tokens=7, busy_s=0.5), "tiny"))
    assert not [name for name in samples(metrics) if "r1" in name]


def test_ends_are_told_apart_by_whose_doing_they_were():
    watch, metrics = watch_with()
    for outcome in (
        Outcome("q1", error="too long", category="user"),
        Outcome("q1", error="broke", category="server", num_tokens=7),
    ):
        watch.did(Finish(ROW, "failed", outcome, "tiny"))
    watch.did(Finish(ROW, "cancelled", Outcome("q1", error="cancelled", category="user"), "tiny"))
    shown = samples(metrics)
    ends = Counter(
        {name.split('outcome="')[1][:-2]: shown[name] for name in shown if name.startswith("openrl_requests_t")}
    )
    assert ends == {"failed_user": 1, "failed_server": 1, "cancelled": 1}
    assert not [name for name in shown if name.startswith("openrl_tokens_total{")]


def test_the_wait_of_a_traced_request_is_a_span_of_its_trace():
    tracer = FakeTracer()
    watch = Watch(create_metrics(), lambda: 102.0, tracer)
    watch.did(SendCommand("w#1", Execute(1, "forward_backward", (ITEM, replace(ITEM, trace_context=None)))))
    (span,) = tracer.spans
    assert (span.name, span.parent, span.began_at, span.ended_at) == ("queue forward_backward", TRACE, 100.0, 102.0)
    assert span.attributes == {
        "openrl.request_id": "q1", "openrl.run_id": "r1", "openrl.tenant_id": "alice", "openrl.worker": "w#1",
    }  # fmt: skip


def test_replays_are_counted():
    watch, metrics = watch_with()
    outcomes = (Outcome("q1", busy_s=2.0), Outcome("q2", "ref", busy_s=1.0), Outcome("q3", error="broke", busy_s=1.0))
    watch.saw(WorkerReported("w#1", ExecuteDone(1, outcomes)))
    shown = samples(metrics)
    assert (shown["openrl_replayed_requests_total"], shown["openrl_replay_seconds_total"]) == (1.0, 2.0)


def test_lines_about_a_request_name_it_its_run_its_tenant_and_its_trace():
    stream = io.StringIO()
    configure_logs("scheduler", "debug", stream)
    watch, _ = watch_with()
    watch.did(SendCommand("w#1", Execute(1, "forward_backward", (ITEM,))))
    watch.did(Finish(ROW, "done", Outcome("q1", "ref"), "tiny"))
    watch.did(Finish(ROW, "failed", Outcome("q1", error="broke", category="server"), "tiny"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["request sent", "request ended", "request failed"]
    about = {"request_id": "q1", "run_id": "r1", "tenant_id": "alice", "trace_id": "a" * 32}
    assert all({name: line[name] for name in about} == about for line in lines)
