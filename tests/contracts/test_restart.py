"""kill -9 of the worker and of the server: what was acknowledged is kept, and no number changes."""

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import tinker
import torch
from tinker import types
from tinker.lib.public_interfaces.custom_loss import LossHandle

from tests.contracts.conftest import http_client
from tests.contracts.loops import (
    STEP,
    TEXT,
    Trained,
    backward,
    batch,
    connect,
    datum,
    new_run,
    numbers,
    resume,
    sample,
    sampled,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.raw_api import RawApi
from tests.contracts.saved_state import read_object, read_state, same_state, state_of, stored_objects
from tests.live_server import MODEL_NAME, LiveServer, start_server

# Device seconds: small enough that these runs come back from a snapshot and the requests after it.
CONFIG = """
[scheduler]
max_replay_s = 0.05
"""


class Machine:
    """A server that can be killed and started again at the same address over the same data."""

    def __init__(self, model_dir: Path, home: Path) -> None:
        self._model_dir = model_dir
        self._config = home / "openrl.toml"
        self._config.write_text(CONFIG)
        self.live: LiveServer = start_server(model_dir, home / "data", "--config", str(self._config))

    def kill_server(self) -> None:
        """kill -9; its worker, an orphan then, ends by itself."""
        self.live.kill()

    def start_again(self) -> None:
        port = self.live.url.rpartition(":")[2]
        flags = ("--config", str(self._config), "--port", port)
        self.live = start_server(self._model_dir, self.live.data_dir, *flags)

    def kill_worker(self) -> None:
        """kill -9; the server starts another."""
        [worker] = self.live.worker_pids
        os.kill(worker, signal.SIGKILL)


@pytest.fixture(scope="module")
def machine(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tiny_model_dir, tmp_path_factory.mktemp("machine"))
    yield machine
    machine.live.kill()


@pytest.fixture(scope="module")
def owner(machine: Machine) -> Iterator[tinker.ServiceClient]:
    with connect(machine.live.url, machine.live.key) as service:
        yield service


@pytest.fixture
def http(machine: Machine) -> Iterator[httpx.Client]:
    with http_client(machine.live.url, machine.live.key) as client:
        yield client


@pytest.fixture
def rest(machine: Machine) -> tinker.RestClient:
    return tinker.RestClient(base_url=machine.live.url, api_key=machine.live.key)


# 38
def test_kills_of_the_worker_change_no_number(machine: Machine, owner: tinker.ServiceClient):
    undisturbed, run = new_run(owner), new_run(owner)
    expected = train(undisturbed, 12)
    chance = random.Random(1)
    futures = [
        (run.forward_backward(batch(3, i), "cross_entropy"), run.optim_step(STEP)) for i in range(12)
    ]  # all in flight
    for at in (2, 7):
        futures[at][0].result()
        time.sleep(chance.random() * 0.05)
        machine.kill_worker()
    got = [Trained(numbers(passed.result()), stepped.result().metrics or {}) for passed, stepped in futures]
    assert got == expected
    data_dir = machine.live.data_dir
    assert same_state(state_of(run, data_dir), state_of(undisturbed, data_dir))
    assert num_snapshots(run.model_id, data_dir) > 0


def num_snapshots(run_id: str, data_dir: Path) -> int:
    prefix = quote(f"snapshots/{run_id}/", safe="")
    return sum(each.name.startswith(prefix) for each in (data_dir / "blobs" / "objects").iterdir())


# 12, 38
@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_worker_lost_after_a_step_that_failed_changes_no_number(
    machine: Machine, owner: tinker.ServiceClient, is_waited_for: bool
):
    undisturbed, run = new_run(owner), new_run(owner)
    expected = train(undisturbed, 2), failure_of(hopeless_step(undisturbed)), train(undisturbed, 2, first=5)
    before, failing = train(run, 2), hopeless_step(run)
    if is_waited_for:
        failing.exception()
    machine.kill_worker()
    assert (before, failure_of(failing), train(run, 2, first=5)) == expected
    data_dir = machine.live.data_dir
    assert same_state(state_of(run, data_dir), state_of(undisturbed, data_dir))


def hopeless_step(run: tinker.TrainingClient) -> "Future[types.OptimStepResponse]":
    """A step over a gradient whose norm is not finite, though the gradient is; sent."""
    run.forward_backward([datum([4, 5, 6, 7], 1e30)], "cross_entropy").result()
    return run.optim_step(STEP).future()


def failure_of(step: "Future[types.OptimStepResponse]") -> str:
    failure = step.exception()
    assert isinstance(failure, tinker.RequestFailedError)
    return str(failure).replace(failure.request_id, "")


# 21
def test_a_sampler_gives_the_same_from_another_worker(machine: Machine, owner: tinker.ServiceClient):
    run = new_run(owner)
    train(run, 2)
    named, unnamed = snapshot(run, "kept"), snapshot(run)
    before = sample(named, TEXT, 3, max_tokens=20)
    in_flight = [each.sample(*a_long_request()) for each in (named, unnamed)]
    machine.kill_worker()
    assert sample(named, TEXT, 3, max_tokens=20) == before
    assert sample(unnamed, TEXT, 3, max_tokens=20) == before
    first, second = (future.result().sequences[0].tokens for future in in_flight)
    assert first == second
    assert len(first) == 200


def test_a_penalised_sample_is_the_same_from_another_worker(machine: Machine, owner: tinker.ServiceClient):
    header = {"X-OpenRL-Sampling-Params": '{"repetition_penalty": 1.3, "frequency_penalty": 0.2}'}
    with connect(machine.live.url, machine.live.key, header) as service:
        sampler = service.create_sampling_client(base_model=MODEL_NAME).result()
        before = sampled(sampler.sample(*a_long_request()).result())
        in_flight = sampler.sample(*a_long_request())
        machine.kill_worker()
        assert sampled(in_flight.result()) == before
    plain = owner.create_sampling_client(base_model=MODEL_NAME).result()
    assert sampled(plain.sample(*a_long_request()).result()) != before


def a_long_request() -> tuple[types.ModelInput, int, types.SamplingParams]:
    return types.ModelInput.from_ints(TEXT), 1, types.SamplingParams(max_tokens=200, seed=4, stop=[])


# 38
def test_kills_of_the_server_change_no_number(machine: Machine, owner: tinker.ServiceClient, rest: tinker.RestClient):
    undisturbed, run, idle = (new_run(owner) for _ in range(3))
    expected = train(undisturbed, 8)
    train(idle, 2)
    pending = backward(idle, batch(3, 2))  # its gradient waits for a step
    path = idle.save_state("kept").result().path
    sampler = snapshot(idle)
    sampled = sample(sampler, TEXT, 2)
    listed = everything_of(rest, run.model_id)
    futures = [(run.forward_backward(batch(3, i), "cross_entropy"), run.optim_step(STEP)) for i in range(8)]
    futures[3][0].result()
    machine.kill_server()
    machine.start_again()
    got = [Trained(numbers(passed.result()), stepped.result().metrics or {}) for passed, stepped in futures]
    assert got == expected
    data_dir = machine.live.data_dir
    assert same_state(state_of(run, data_dir), state_of(undisturbed, data_dir))
    assert everything_of(rest, run.model_id).items() >= listed.items()
    assert sample(sampler, TEXT, 2) == sampled
    # The idle run: its two steps, and the gradient that waited, are there.
    twin = new_run(owner)
    train(twin, 2)
    assert backward(twin, batch(3, 2)) == pending
    assert step_metrics(idle) == step_metrics(twin)
    assert same_state(state_of(idle, data_dir), state_of(twin, data_dir))
    assert train(resume(owner, path), 1) == train(resume(owner, path), 1)


def everything_of(rest: tinker.RestClient, run_id: str) -> dict[str, str]:
    """Ids and paths of the tenant, by what they are."""
    session_id = run_id.partition(":train:")[0]
    session = rest.get_session(session_id).result()
    runs = rest.list_training_runs(limit=1000).result().training_runs
    checkpoints = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert session_id in rest.list_sessions(limit=1000).result().sessions
    found = {sampler: rest.get_sampler(sampler).result().base_model for sampler in session.sampler_ids}
    found |= {run.training_run_id: run.base_model for run in runs}
    found |= {each.tinker_path: str(each.time) for each in checkpoints if "state-" not in each.tinker_path}
    return found | dict.fromkeys(session.training_run_ids, "run")


# 34, 38: a kill straight after the acknowledgement, before any work was done.
def test_what_was_acknowledged_just_before_a_kill_takes_effect_once(
    machine: Machine, owner: tinker.ServiceClient, http: httpx.Client
):
    raw = RawApi(http)
    undisturbed, run = new_run(owner), new_run(owner)
    expected = train(undisturbed, 3)
    after = state_of(undisturbed, machine.live.data_dir)
    old = run.save_state("mine").result().path
    before = read_state(old, machine.live.data_dir)
    ids: list[str] = []
    for i in range(3):
        ids.append(raw.submit_backward(run.model_id, 2 * i + 2, batch(3, i)))
        ids.append(raw.submit_step(run.model_id, 2 * i + 3))
    save = raw.post("save_weights", model_id=run.model_id, seq_id=8, path="mine", overwrite=True)["request_id"]
    machine.kill_server()
    on_disk = [read_object(home) for home in stored_objects(old, machine.live.data_dir)]  # raises for a torn one
    assert on_disk
    assert all(same_state(state, before) or same_state(state, after) for state in on_disk)
    machine.start_again()
    assert [numbers(raw.output(request_id)) for request_id in ids[::2]] == [each.passed for each in expected]
    assert [raw.result(request_id)["metrics"] for request_id in ids[1::2]] == [each.metrics for each in expected]
    assert raw.result(save)["path"] == old
    assert same_state(state_of(resume(owner, old), machine.live.data_dir), after)


# 34
def test_a_closed_run_keeps_its_checkpoints_and_no_snapshot(machine: Machine, owner: tinker.ServiceClient):
    data_dir = machine.live.data_dir
    closed, kept = new_run(owner), new_run(owner)
    for run in (closed, kept):
        train(run, 12)
    path = closed.save_state("last").result().path
    last = state_of(closed, data_dir)
    with http_client(machine.live.url, machine.live.key) as client:
        raw = RawApi(client)
        raw.result(raw.post("unload_model", model_id=closed.model_id)["request_id"])
    assert num_snapshots(closed.model_id, data_dir) > 0
    machine.live.stop()
    machine.start_again()  # which sweeps
    assert same_state(state_of(resume(owner, path), data_dir), last)
    assert num_snapshots(closed.model_id, data_dir) == 0
    assert num_snapshots(kept.model_id, data_dir) > 0
    assert train(kept, 1, first=12) == train(resume(owner, path), 1, first=12)


def weighted(logprobs: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:mean": loss}


# 38
@pytest.mark.sdk("ServiceClient.create_custom_loss", "TrainingClient.forward_backward_custom")
def test_a_custom_loss_and_what_it_trained_survive_kills(machine: Machine, owner: tinker.ServiceClient):
    loss = owner.create_custom_loss(weighted, {"logprobs": 1, "weights": 1}).result()
    undisturbed, run = new_run(owner), new_run(owner)
    expected = [train_custom(undisturbed, loss, i) for i in range(4)]
    got = [train_custom(run, loss, i) for i in range(2)]
    machine.kill_server()
    machine.start_again()
    got += [train_custom(run, loss, i) for i in range(2, 4)]
    assert got == expected
    assert same_state(state_of(run, machine.live.data_dir), state_of(undisturbed, machine.live.data_dir))


def train_custom(run: tinker.TrainingClient, loss: LossHandle, number: int) -> Trained:
    passed, stepped = run.forward_backward_custom(batch(3, number), loss), run.optim_step(STEP)
    return Trained(numbers(passed.result()), stepped.result().metrics or {})
