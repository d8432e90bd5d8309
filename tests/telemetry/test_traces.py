"""Traces of a live server, from the call to the packed batch."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.live_cluster import start_cluster
from tests.live_server import MODEL_NAME, LiveServer, start_server
from tests.postgres import PostgresServer, new_database
from tests.telemetry.otlp_receiver import OtlpReceiver, ReceivedSpan

SERVICES = ("openrl-gateway", "openrl-scheduler", "openrl-worker")
TRACE_ID = "0123456789abcdef0123456789abcdef"
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},  # pyright: ignore[reportArgumentType]
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    running = OtlpReceiver()
    yield running
    running.close()


@pytest.fixture(scope="module")
def traced_server(
    receiver: OtlpReceiver, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, receiver)
        server = start_server(tiny_model_dir, tmp_path_factory.mktemp("traced"))
    yield server
    server.stop()


def set_environment(patch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")


def train_and_sample(url: str, key: str, headers: Mapping[str, str]) -> None:
    with tinker.ServiceClient(base_url=url, api_key=key, default_headers_overrides=headers) as client:
        trainer = client.create_lora_training_client(MODEL_NAME, rank=4).result()
        trainer.forward_backward([DATUM], "cross_entropy").result()
        sampler = trainer.save_weights_and_get_sampling_client().result()
        sampler.sample(types.ModelInput.from_ints([1, 2, 3]), 1, types.SamplingParams(max_tokens=4)).result()


def named(spans: list[ReceivedSpan], *names: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name in names]


def test_a_trace_goes_from_the_call_to_the_batch_and_tenants_are_never_in_one(
    traced_server: LiveServer, receiver: OtlpReceiver
):
    check_traces(traced_server, receiver)


@pytest.mark.slow
def test_traces_go_on_from_process_to_process(
    tiny_model_dir: Path, tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    """The same over PostgreSQL with two gateways, two schedulers and two workers."""
    receiver = OtlpReceiver()
    set_environment(monkeypatch, receiver)
    cluster = start_cluster(tiny_model_dir, tmp_path, new_database(postgres))
    try:
        check_traces(cluster.as_server(), receiver)
    finally:
        cluster.stop()
        receiver.close()


def check_traces(server: LiveServer, receiver: OtlpReceiver) -> None:
    header = {"traceparent": f"00-{TRACE_ID}-0123456789abcdef-01"}
    with ThreadPoolExecutor(2) as threads:
        ends = [
            threads.submit(train_and_sample, server.url, server.key, header),
            threads.submit(train_and_sample, server.url, server.other_key, {}),
        ]
        for end in ends:
            end.result()
    executed = ("execute forward_backward", "execute sample")
    receiver.wait_for(lambda spans: len(named(spans, *executed)) == 4)
    calls = ("POST /api/v1/forward_backward", "POST /api/v1/asample")
    receiver.wait_for(lambda spans: len(named(spans, *calls)) == 4)
    receiver.wait_for(lambda spans: len(named(spans, "queue forward_backward", "queue sample")) == 4)
    spans = receiver.spans

    by_trace: dict[str, set[str]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, set()).add(span.tenant)
    assert all(len(tenants - {""}) <= 1 for tenants in by_trace.values())
    tenants = {span.tenant for span in named(spans, *calls)}
    assert len(tenants) == 2

    for call in named(spans, *calls):
        below = [span for span in spans if span.parent_id == call.span_id]
        kind = "sample" if call.name.endswith("asample") else "forward_backward"
        assert {(span.service, span.name) for span in below} == {
            ("openrl-scheduler", f"queue {kind}"),
            ("openrl-worker", f"execute {kind}"),
        }
        assert {span.trace_id for span in below} == {call.trace_id}
        about = {span.attributes["openrl.request_id"] for span in below}
        assert about == {call.attributes["openrl.request_id"]}
        assert {span.tenant for span in below} == {call.tenant}
        assert all(span.began_ns <= span.ended_ns for span in below)

    # The first client traces its calls itself: all it did is in its trace. Those of the other begin here, one each.
    traces = {span.trace_id for span in named(spans, *calls)}
    assert TRACE_ID in traces
    assert len(traces) == 3
    assert len([span for span in named(spans, *calls) if span.trace_id == TRACE_ID]) == 2

    receiver.wait_for(lambda spans: len(named(spans, "batch sample")) == 2)
    for kind in ("forward_backward", "sample"):
        links = {link for batch in named(spans, f"batch {kind}") for link in batch.links}
        assert links == {span.trace_id for span in named(spans, f"execute {kind}")}
    for batch in named(spans, "batch sample"):
        assert {
            name: int(batch.attributes[f"openrl.{name}"]) for name in ("num_prefill_tokens", "num_decode_steps")
        } == {
            "num_prefill_tokens": 3,
            "num_decode_steps": 3,  # the first of four tokens comes from the prompt's end
        }
        assert int(batch.attributes["openrl.max_adapters"]) in (1, 2)
    batches = named(spans, "batch forward_backward", "batch sample")
    assert not {batch.trace_id for batch in batches} & traces
    assert {span.service for span in spans} == set(SERVICES)


def test_what_is_not_sent_yet_is_sent_at_the_end(traced_server: LiveServer, receiver: OtlpReceiver):
    """The last test here: the server is gone after it."""
    before = len(receiver.spans)
    train_and_sample(traced_server.url, traced_server.key, {})
    assert traced_server.stop() == 0
    assert len(named(receiver.spans[before:], "execute sample")) == 1
