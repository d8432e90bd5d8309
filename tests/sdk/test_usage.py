"""What a tenant used, what it stores, and what was done to its things."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import tinker
from tinker import types
from tinker.types.billing_usage_response import (
    CheckpointBillingEvent,
    SamplingPrefillBillingEvent,
    StorageBillingEvent,
)

from tests.contracts.loops import TEXT, backward, batch, connect, new_run, prompt_of
from tests.live_server import LiveServer, start_server
from tests.sdk.tinker_cli import TinkerCli

RATES = "[gateway.rates]\ntraining = 2.0\nprefill = 1.0\nsample = 3.0\nstorage = 720.0\n"


@pytest.fixture(scope="module")
def priced(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with rates, and nobody else's work."""
    directory = tmp_path_factory.mktemp("priced")
    (directory / "openrl.toml").write_text(RATES)
    live = start_server(tiny_model_dir, directory, "--config", str(directory / "openrl.toml"))
    yield live
    live.stop()


@pytest.fixture(scope="module")
def session_id(priced: LiveServer) -> str:
    """A session of alice that trained on two batches, saved, and sampled twice from one prompt."""
    with tinker.ServiceClient(
        base_url=priced.url, api_key=priced.key, user_metadata={"team": "red"}, project_id="metered"
    ) as service:
        run = new_run(service)
        for _ in range(2):
            backward(run, batch(1))
        run.save_state("kept").result()
        sampler = service.create_sampling_client(base_model="tiny").result()
        params = types.SamplingParams(max_tokens=3, stop=[], seed=1)
        sampler.sample(prompt_of(TEXT[:8]), num_samples=2, sampling_params=params).result()
        return run.model_id.partition(":")[0]


def admin(server: LiveServer, key: str) -> tinker.AdminClient:
    return tinker.AdminClient(base_url=server.url, api_key=key)


def this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def window() -> tuple[datetime, datetime]:
    return this_hour() - timedelta(hours=1), this_hour() + timedelta(hours=1)


@pytest.mark.sdk("AdminClient.get_billing_usage")
def test_usage_counts_what_ran_and_what_it_cost(priced: LiveServer, session_id: str):
    usage = admin(priced, priced.key).get_billing_usage(*window()).result()
    tokens: dict[str, int] = {}
    for event in usage.data:
        info = event.event_info
        assert event.project_id == "metered"
        if isinstance(info, CheckpointBillingEvent):
            assert (info.count, event.estimated_cost_usd) == (1, None)
        elif isinstance(info, StorageBillingEvent):
            assert info.gigabyte_hours > 0
            assert event.estimated_cost_usd == pytest.approx(info.gigabyte_hours)
        else:
            is_cached = isinstance(info, SamplingPrefillBillingEvent) and info.cached
            kind = f"{info.type} cached" if is_cached else info.type
            tokens[kind] = tokens.get(kind, 0) + info.token_count
            assert event.session_id == session_id
            rate = {"training": 2.0, "sampling_sample": 3.0, "sampling_prefill": 1.0}[info.type]
            assert event.estimated_cost_usd == pytest.approx(rate * info.token_count / 1e6)
    num_trained = 2 * sum(datum.model_input.length for datum in batch(1))
    assert tokens == {"training": num_trained, "sampling_prefill": 8, "sampling_sample": 6}
    assert usage.sessions[session_id].user_metadata == {"team": "red"}
    assert {event.event_info.type for event in usage.data} >= {"storage", "checkpoint"}


@pytest.mark.sdk("AdminClient.get_billing_usage", "AdminClient.get_current_checkpoint_storage_usage")
def test_another_tenant_used_nothing(priced: LiveServer, session_id: str):
    other = admin(priced, priced.other_key)
    assert other.get_billing_usage(*window()).result().data == []
    assert other.get_current_checkpoint_storage_usage().result().data == []
    assert other.get_current_checkpoint_storage_usage(project_id="metered").result().data == []


@pytest.mark.sdk("AdminClient.get_billing_usage")
def test_a_window_that_cannot_be_served_is_refused_with_its_bounds(priced: LiveServer):
    hour = this_hour()
    windows = [
        (hour, hour),
        (hour - timedelta(days=14), hour + timedelta(hours=1)),
        (hour + timedelta(hours=2), hour + timedelta(hours=3)),
        (hour - timedelta(minutes=30), hour),
    ]
    for start, end in windows:
        with pytest.raises(tinker.BadRequestError):
            admin(priced, priced.key).get_billing_usage(start, end).result()


@pytest.mark.sdk("AdminClient.get_current_checkpoint_storage_usage")
def test_current_storage_is_told_by_project(priced: LiveServer, session_id: str):
    storage = admin(priced, priced.key).get_current_checkpoint_storage_usage(project_id="metered").result()
    assert storage.effective_rate_usd_per_gigabyte_month == 720.0
    (item,) = storage.data
    assert item.checkpoint_count == 1
    assert item.size_gigabytes == pytest.approx(item.size_bytes / 1e9)
    assert item.estimated_monthly_cost_usd == pytest.approx(720.0 * item.size_gigabytes)


@pytest.mark.sdk("tinker billing usage", "tinker billing checkpoint-storage")
def test_the_command_line_tells_usage(priced: LiveServer, session_id: str, tmp_path: Path):
    cli = TinkerCli(priced.url, priced.key, tmp_path)
    start, end = (time.isoformat().replace("+00:00", "Z") for time in window())
    rows = list(csv.DictReader(io.StringIO(cli.table("billing", "usage", start, end, "--csv", "-"))))
    assert session_id in {row["session_id"] for row in rows}
    assert "training" in json.dumps(cli.json("billing", "usage", start, end))
    stored = cli.json("billing", "checkpoint-storage", "--project-id", "metered")
    assert stored["data"][0]["checkpoint_count"] == 1


@pytest.mark.sdk("RestClient.get_billing_usage", "RestClient.get_current_checkpoint_storage_usage")
def test_without_rates_nothing_has_a_cost(server: LiveServer, rest: tinker.RestClient, alice: tinker.ServiceClient):
    backward(new_run(alice), batch(1))
    usage = rest.get_billing_usage(*window()).result()  # pyright: ignore[reportDeprecated]
    assert usage.data
    assert {event.estimated_cost_usd for event in usage.data} == {None}
    storage = rest.get_current_checkpoint_storage_usage().result()  # pyright: ignore[reportDeprecated]
    assert storage.effective_rate_usd_per_gigabyte_month is None


@pytest.mark.sdk("AdminClient.get_audit_log", "RestClient.get_audit_log")
def test_the_audit_log_tells_what_was_done(priced: LiveServer, session_id: str):
    with connect(priced.url, priced.key) as service:
        rest = tinker.RestClient(base_url=priced.url, api_key=priced.key)
        run = new_run(service)
        path = run.save_state("watched").result().path
        rest.publish_checkpoint_from_tinker_path(path).result()
        rest.unpublish_checkpoint_from_tinker_path(path).result()
        rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
        rest.delete_checkpoint_from_tinker_path(path).result()
        rest.assign_session_project(session_id, "elsewhere").result()
        rest.assign_session_project(session_id, "metered").result()
    client = admin(priced, priced.key)
    entries = client.get_audit_log("checkpoints").result().entries
    assert [entry.event for entry in entries if entry.tinker_path == path] == [
        "checkpoint_save", "checkpoint_publish", "checkpoint_unpublish", "checkpoint_ttl_set", "checkpoint_delete",
    ]  # fmt: skip
    moves = [
        entry for entry in client.get_audit_log("projects").result().entries if "session_id" in entry.event_details
    ]
    assert [entry.event_details["project_id"] for entry in moves] == ["elsewhere", "metered"]
    everything = client.get_audit_log().result().entries
    assert len(everything) > len(entries) + len(moves)  # the key's creation at least
    assert client.get_audit_log("teams").result().entries == []
    assert client.get_audit_log(day=date(2020, 1, 1)).result().entries == []
    others = admin(priced, priced.other_key).get_audit_log().result().entries
    assert path not in {entry.tinker_path for entry in others}
