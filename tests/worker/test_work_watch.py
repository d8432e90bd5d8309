import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from openrl.sampling.base import BatchPart
from openrl.telemetry.logs import configure_logs
from openrl.telemetry.metrics import create_worker_metrics
from openrl.worker.deliverer import PendingOutcome
from openrl.worker.work_watch import WorkWatch
from tests.telemetry.fake_tracer import FakeTracer, trace_context
from tests.worker.rig import RUN_ID, Rig, execute, open_run

OTHER_RUN = "s2:train:0"


@pytest.fixture
def log_lines() -> Iterator[io.StringIO]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    stream = io.StringIO()
    configure_logs("worker-0", "debug", stream)
    yield stream
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_packed_pass_is_one_span_linked_with_every_request_and_one_in_each_requests_trace(tmp_path: Path):
    tracer = FakeTracer()
    rig = Rig(tmp_path, watch=WorkWatch(create_worker_metrics(), tracer))
    alice = rig.forward_backward(request_id="a", tenant_id="alice", trace_context=trace_context(1))
    bob = rig.forward_backward(request_id="b", tenant_id="bob", run_id=OTHER_RUN, trace_context=trace_context(2))
    untraced = rig.forward_backward(2, request_id="c", tenant_id="alice")
    rig.run(open_run(), open_run(OTHER_RUN), execute(alice, bob, untraced))
    batch, first, second = tracer.spans
    assert (batch.name, batch.parent, batch.links) == (
        "batch forward_backward", None, (trace_context(1), trace_context(2)),
    )  # fmt: skip
    assert "openrl.tenant_id" not in batch.attributes
    assert [span.parent for span in (first, second)] == [trace_context(1), trace_context(2)]
    assert [span.attributes["openrl.tenant_id"] for span in (first, second)] == ["alice", "bob"]
    assert {span.name for span in (first, second)} == {"execute forward_backward"}
    assert first.links == second.links == (batch.context,)


def test_a_sample_is_a_span_of_its_requests_trace(tmp_path: Path):
    tracer = FakeTracer()
    rig = Rig(tmp_path, watch=WorkWatch(create_worker_metrics(), tracer))
    sample = rig.sample("q", [1, 2, 3])
    rig.run(replace(sample, item=replace(sample.item, trace_context=trace_context(1))), rig.sample("plain", [1, 2]))
    (span,) = tracer.spans
    assert (span.name, span.parent, span.error) == ("execute sample", trace_context(1), "")
    assert span.attributes["openrl.request_id"] == "q"
    assert span.began_at <= span.ended_at


def test_a_samples_part_in_the_batch_is_a_span_beside_its_trace(tmp_path: Path):
    tracer = FakeTracer()
    rig = Rig(tmp_path)
    item = replace(rig.sample("q", [1, 2, 3]).item, tenant_id="alice", trace_context=trace_context(1))
    watch = WorkWatch(create_worker_metrics(), tracer, clock=lambda: 100.0)
    part = BatchPart(2.0, 3, 4, max_sequences=5, max_adapters=2, shared_with=(trace_context(2),))
    watch.sampled(item, PendingOutcome("q", None, wall_s=3.0, item=item), part)
    batch, execute_span = tracer.spans
    assert (batch.name, batch.parent, batch.links) == ("batch sample", None, (trace_context(1), trace_context(2)))
    assert (batch.began_at, execute_span.began_at, batch.ended_at) == (98.0, 97.0, 100.0)
    assert execute_span.links == (batch.context,)
    assert batch.attributes == {
        "openrl.num_prefill_tokens": 3,
        "openrl.num_decode_steps": 4,
        "openrl.max_sequences": 5,
        "openrl.max_adapters": 2,
    }
    watch.sampled(replace(item, trace_context=None), PendingOutcome("q", None), part)
    assert len(tracer.spans) == 2


def test_a_failed_request_is_a_failed_span(tmp_path: Path):
    tracer = FakeTracer()
    rig = Rig(tmp_path, watch=WorkWatch(create_worker_metrics(), tracer))
    rig.run(execute(rig.forward_backward(trace_context=trace_context(1))))  # its run is not open
    assert tracer.spans[-1].error


def test_turns_and_packed_requests_are_counted(tmp_path: Path):
    metrics = create_worker_metrics()
    rig = Rig(tmp_path, watch=WorkWatch(metrics))
    rig.run(open_run(), execute(rig.forward_backward(1), rig.forward_backward(2)), rig.sample("q", [1, 2]))
    text = metrics.render().decode()
    assert 'openrl_pass_requests_sum{kind="forward_backward"} 2.0' in text
    assert 'openrl_turn_seconds_count{side="sampling"} 0.0' not in text
    assert 'openrl_turn_seconds_count{side="training"} 0.0' not in text


def test_lines_of_the_compute_thread_name_request_run_tenant_and_trace(tmp_path: Path, log_lines: io.StringIO):
    rig = Rig(tmp_path)
    alone = rig.forward_backward(1, loss_fn="explode", trace_context=trace_context(1))
    rig.run(open_run(), open_run(OTHER_RUN), execute(alone))
    (line,) = [json.loads(line) for line in log_lines.getvalue().splitlines()]
    about = {
        "request_id": "forward_backward-1",
        "run_id": RUN_ID,
        "tenant_id": "t1",
        "trace_id": trace_context(1)[3:35],
    }
    assert {name: line[name] for name in about} == about


def test_a_line_about_several_requests_names_them_all(tmp_path: Path, log_lines: io.StringIO):
    rig = Rig(tmp_path)
    alice = rig.forward_backward(request_id="a", tenant_id="alice", loss_fn="explode")
    bob = rig.forward_backward(request_id="b", tenant_id="bob", run_id=OTHER_RUN)
    rig.run(open_run(), open_run(OTHER_RUN), execute(alice, bob))
    (line,) = [json.loads(line) for line in log_lines.getvalue().splitlines()]
    assert line["requests"] == [
        {"request_id": "a", "run_id": RUN_ID, "tenant_id": "alice"},
        {"request_id": "b", "run_id": OTHER_RUN, "tenant_id": "bob"},
    ]


def test_samples_that_are_lost_with_their_batch_have_a_line_each(tmp_path: Path, log_lines: io.StringIO):
    rig = Rig(tmp_path)
    rig.run(rig.sample("q1", [13]), rig.sample("q2", [1, 2]))
    lines = [json.loads(line) for line in log_lines.getvalue().splitlines()]
    lost = [line for line in lines if line["event"] == "sample lost with its batch"]
    assert [(line["request_id"], line["tenant_id"]) for line in lost] == [("q1", "t1"), ("q2", "t1")]
