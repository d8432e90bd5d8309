"""What `openrl cluster` tells whoever has the database, and what of it a tenant can reach: nothing."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker
from bench.autoscale import play
from bench.load_trace import read_trace
from typer.testing import CliRunner

from openrl.cli.main import app
from openrl.cli.recording import read_span
from openrl.errors import InvalidRequest
from tests.contracts.loops import TEXT, new_run, sample, snapshot, train
from tests.live_cluster import ClusterServer
from tests.live_server import LiveServer

GUESSES = ("autoscale/default", "cluster", "cluster/status", "cluster/record", "workers", "pools", "queue", "drain")


def operate(server: LiveServer, *arguments: str) -> str:
    settings = server.cluster.settings if isinstance(server, ClusterServer) else {}
    command = ["cluster", *arguments, "--data-dir", str(server.data_dir)]
    done = CliRunner(env=dict(settings)).invoke(app, command)
    assert done.exit_code == 0, done.exception
    return done.stdout


@pytest.fixture(scope="module")
def runs(alice: tinker.ServiceClient, bob: tinker.ServiceClient) -> dict[str, str]:
    """The id of a run at work by tenant."""
    found: dict[str, str] = {}
    for name, service in (("default", alice), ("other", bob)):
        run = new_run(service)
        train(run, 2)
        sample(snapshot(run), TEXT)
        found[name] = run.get_info().model_id
    return found


def test_an_operator_sees_the_runs_of_all_tenants_with_their_part_of_the_device(
    server: LiveServer, runs: dict[str, str]
):
    shown: dict[str, Any] = json.loads(operate(server, "status", "--json"))
    ours = {each["tenant"]: each for each in shown["runs"] if each["run_id"] in runs.values()}
    assert {tenant: each["run_id"] for tenant, each in ours.items()} == runs
    assert all(0.0 < each["gpu_duty"] <= 1.0 and each["gpu_seconds"] > 0.0 for each in ours.values())


def test_an_admin_of_a_tenant_reaches_nothing_of_it(server: LiveServer, runs: dict[str, str]):
    with httpx.Client(base_url=server.url) as http:
        paths: dict[str, dict[str, Any]] = http.get("/openapi.json").json()["paths"]
        for path in paths:
            assert not any(word in path for word in ("cluster", "drain", "autoscale", "worker", "pool"))
        readable = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
        assert "/api/v1/training_runs" in readable
        for key, other in ((server.key, runs["other"]), (server.other_key, runs["default"])):
            headers = {"X-API-Key": key}
            for path in readable:
                assert other not in http.get(path, headers=headers).text, path
            for path in (f"{prefix}/{guess}" for prefix in ("", "/api/v1", "/api/v1/admin") for guess in GUESSES):
                assert {http.request(each, path, headers=headers).status_code for each in ("GET", "POST")} == {404}, (
                    path
                )


def test_a_servers_load_is_recorded_without_names_and_played(server: LiveServer, runs: dict[str, str], tmp_path: Path):
    file = tmp_path / "load.jsonl"
    assert operate(server, "record", str(file), "--since", "30m").endswith(f"sessions in {file}.\n")
    text = file.read_text()
    assert not any(name in text for name in (*runs, *runs.values()))
    trace = read_trace(file)
    assert len({spec.tenant for spec in trace}) >= 2
    assert all(sum(step.busy_s[0] + step.busy_s[1] for step in spec.steps) > 0.0 for spec in trace if spec.num_runs)
    report, _ = play(trace, is_recorded=True)
    assert report.unfinished == 0
    assert report.requests == 3 * sum(len(spec.steps) for spec in trace)


@pytest.mark.parametrize("given", ["yesterday", "24", "0h", "-1h", "1.5h", "100000d", ""])
def test_a_stretch_of_time_that_is_none_is_refused(given: str):
    with pytest.raises(InvalidRequest, match=re.escape(repr(given))):
        read_span(given)
    assert (read_span("90m"), read_span("24h"), read_span("7d")) == (5400.0, 86400.0, 604800.0)
