"""A pool without workers: what is asked of it waits, says why, and is done when a worker comes."""

import gc
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tinker
from typer.testing import CliRunner

from openrl.cli.main import app
from tests.contracts.loops import TEXT, connect, new_run, sample, snapshot, train
from tests.live_cluster import LiveCluster, start_cluster
from tests.postgres import PostgresServer, new_database

SETTINGS = {"OPENRL_SCHEDULER__LEASE_S": "4", "OPENRL_GATEWAY__LONG_POLL_S": "1"}
CONFIG = """
[pools.trainers]
models = ["tiny"]
role = "train"
[pools.samplers]
models = ["tiny"]
role = "sample"
"""


@pytest.fixture
def cluster(tiny_model_dir: Path, postgres: PostgresServer, tmp_path: Path) -> Iterator[LiveCluster]:
    database = new_database(postgres)
    live = start_cluster(
        tiny_model_dir, tmp_path / "cluster", database, gateways=1, workers=0, settings=SETTINGS, config=CONFIG
    )
    yield live
    live.stop()
    gc.collect()


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The states that the SDK has seen in polls."""
    from tinker.lib import api_future_impl, queue_state_logger

    seen: list[str] = []

    def note(self: object, queue_state: api_future_impl.QueueState, reason: str | None) -> None:
        seen.append(f"{queue_state.value}: {reason}")

    monkeypatch.setattr(queue_state_logger.QueueStateLogger, "on_queue_state_change", note)
    return seen


def get(address: str, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
            body = reply.read()
            return reply.status, json.loads(body) if body.startswith(b"{") else body.decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_for(ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not ask():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)


def wanted(cluster: LiveCluster) -> list[tuple[int, int]]:
    """By pool, as the leader and the standby say; they agree."""
    signals = [
        [get(each, f"/autoscale/{pool}")[1] for each in cluster.http_addresses] for pool in ("trainers", "samplers")
    ]
    assert all({**a, "waiting_seconds": 0} == {**b, "waiting_seconds": 0} for a, b in signals)
    return [(a["wanted_workers"], a["workers"]) for a, _ in signals]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_clients_wait_for_a_pool_without_workers_and_see_no_error(cluster: LiveCluster, paused: list[str]):
    for each in cluster.http_addresses:
        get_until_up(each, "/startupz")
        wait_for(lambda address=each: get(address, "/readyz")[0] == 200)
    assert wanted(cluster) == [(0, 0), (0, 0)]
    with connect(cluster.urls[0], cluster.keys[0]) as service, ThreadPoolExecutor(2) as threads:
        training = threads.submit(trained_run, service)
        wait_for(lambda: paused)
        assert paused[0].startswith("paused_capacity: no worker serves base model 'tiny'")
        assert wanted(cluster) == [(1, 0), (0, 0)]
        cluster.start("worker", 0, "--pool", "trainers", "--role", "train")
        assert get_until_up(cluster.worker_addresses[0], "/livez") == 200
        run = training.result(120)
        assert get(cluster.worker_addresses[0], "/readyz")[0] == 200
        assert wanted(cluster) == [(1, 1), (0, 0)]

        paused.clear()
        sampling = threads.submit(lambda: sample(snapshot(run), TEXT))
        wait_for(lambda: paused)
        assert wanted(cluster) == [(1, 1), (1, 0)]
        cluster.start("worker", 1, "--pool", "samplers", "--role", "sample")
        assert sampling.result(120)
        check_memory(cluster)

        check_drain(cluster, threads, run, paused)
        assert cluster.stop_one("worker", 0) == 0
        paused.clear()
        waiting = threads.submit(train, run, 1)
        wait_for(lambda: paused)
        assert wanted(cluster) == [(1, 0), (1, 1)]
        cluster.start("worker", 0, "--pool", "trainers", "--role", "train")
        waiting.result(120)
    wait_for(lambda: wanted(cluster) == [(0, 1), (0, 1)])
    wait_for(lambda: 'openrl_pool_workers{pool="trainers"} 1.0' in get(cluster.http_addresses[0], "/metrics")[1])


def trained_run(service: tinker.ServiceClient) -> tinker.TrainingClient:
    run = new_run(service)
    train(run, 1)
    return run


def check_memory(cluster: LiveCluster) -> None:
    """Who only trains has no KV cache; who only samples has one and no run."""
    blocks = 'openrl_worker_kv_blocks{state="total",worker="worker-%d"}'

    def shown() -> dict[str, float]:
        lines = [line for text in metrics(cluster) for line in text.splitlines() if line.startswith("openrl_worker_")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    wait_for(lambda: shown().get(blocks % 1, 0.0) > 0.0)
    assert shown()[blocks % 0] == 0.0
    assert shown()['openrl_worker_resident_runs{worker="worker-1"}'] == 0.0


def metrics(cluster: LiveCluster) -> list[str]:
    return [get(address, "/metrics")[1] for address in cluster.http_addresses]


def check_drain(
    cluster: LiveCluster, threads: ThreadPoolExecutor, run: tinker.TrainingClient, paused: list[str]
) -> None:
    """An operator empties a worker, which then stays empty, and uses it again."""
    assert operate(cluster, "drain", "worker-0") == "Worker worker-0 is drained.\n"
    assert get(cluster.worker_addresses[0], "/readyz")[0] == 503
    assert get(cluster.worker_addresses[0], "/livez")[0] == 200
    shown = json.loads(operate(cluster, "status", "--json"))
    assert [(each["worker"], each["state"], each["runs"]) for each in shown["workers"]] == [
        ("worker-0", "drained", 0),
        ("worker-1", "working", 0),
    ]
    assert shown["runs"][0]["gpu_duty"] > 0
    paused.clear()
    waiting = threads.submit(train, run, 1)
    wait_for(lambda: paused)
    assert json.loads(operate(cluster, "status", "--json"))["queue"][0]["tenant"] == "default"
    assert operate(cluster, "drain", "worker-0", "--undo") == "Worker worker-0 is working.\n"
    waiting.result(60)
    assert get(cluster.worker_addresses[0], "/readyz")[0] == 200


def operate(cluster: LiveCluster, *arguments: str) -> str:
    config = ("--data-dir", str(cluster.data_dir), "--config", str(cluster.directory / "openrl.toml"))
    done = CliRunner(env=dict(cluster.settings)).invoke(app, ["cluster", *arguments, *config])
    assert done.exit_code == 0, done.exception
    return done.stdout


def get_until_up(address: str, path: str) -> int:
    def ask() -> int:
        try:
            return get(address, path)[0]
        except OSError:  # it does not listen yet
            return 0

    wait_for(ask)
    return ask()
