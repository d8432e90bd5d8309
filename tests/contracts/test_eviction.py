"""Contracts 21, 25, 27, 28 on a server that has room for two runs and two snapshots only, and polls briefly."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.contracts.conftest import http_client
from tests.contracts.loops import (
    STEP,
    TEXT,
    Trained,
    backward,
    batch,
    connect,
    new_run,
    numbers,
    prompt_of,
    sample,
    sampled,
    snapshot,
    step_metrics,
    train,
)
from tests.contracts.raw_api import RawApi
from tests.contracts.saved_state import same_state, state_of
from tests.live_server import LiveServer, start_server

CONFIG = """
[gateway]
long_poll_s = 0.2
[training]
resident_runs = 2
host_bytes = 0
[sampling]
resident_adapters = 2
max_sequences = 4
cache_bytes = 250000
"""


@pytest.fixture(scope="module")
def small(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("small")
    (home / "small.toml").write_text(CONFIG)
    live = start_server(tiny_model_dir, home / "data", "--config", str(home / "small.toml"))
    yield live
    live.stop()


@pytest.fixture(scope="module")
def owner(small: LiveServer) -> Iterator[tinker.ServiceClient]:
    with connect(small.url, small.key) as service:
        yield service


# 27
def test_more_runs_than_fit_train_as_if_alone(small: LiveServer, owner: tinker.ServiceClient):
    alone = new_run(owner, seed=0)
    expected = train(alone, 3)
    end = state_of(alone, small.data_dir)
    runs = [new_run(owner, rank=4 + i % 2, seed=i) for i in range(5)]
    got: list[Trained] = []
    for i in range(3):
        passed = [run.forward_backward(batch(3, i), "cross_entropy") for run in runs]
        stepped = [run.optim_step(STEP) for run in runs]
        metrics = [future.result().metrics for future in stepped]
        got.append(Trained(numbers(passed[0].result()), metrics[0] or {}))
    assert got == expected
    assert same_state(state_of(runs[0], small.data_dir), end)


# 27, 28
def test_a_gradient_waits_through_eviction_and_no_other_run_inherits_it(small: LiveServer, owner: tinker.ServiceClient):
    calm, evicted = new_run(owner), new_run(owner)
    for run in (calm, evicted):
        train(run, 2)
    backward(calm, batch(3, 5))
    expected = step_metrics(calm)
    backward(evicted, batch(3, 5))
    for seed in range(4):
        train(new_run(owner, seed=seed), 1)
    assert step_metrics(evicted) == expected
    assert same_state(state_of(evicted, small.data_dir), state_of(calm, small.data_dir))
    fresh = new_run(owner)
    with pytest.raises(tinker.RequestFailedError, match="without gradients"):
        fresh.optim_step(types.AdamParams()).result()


# 28
def test_a_slot_of_an_unloaded_run_starts_clean(small: LiveServer, owner: tinker.ServiceClient):
    with http_client(small.url, small.key) as http:
        raw = RawApi(http)
        first = new_run(owner, seed=9)
        expected = train(first, 2)
        for _ in range(3):  # through every slot
            old = new_run(owner, rank=8, seed=1)
            train(old, 2)
            backward(old, batch(3))
            raw.result(raw.post("unload_model", model_id=old.model_id)["request_id"])
            assert train(new_run(owner, seed=9), 2) == expected


# 21
def test_a_snapshot_is_the_same_after_eviction(owner: tinker.ServiceClient):
    run = new_run(owner)
    train(run, 1)
    samplers = [snapshot(run, "named"), snapshot(run)]
    before = [sample(each, TEXT, 2) for each in samplers]
    assert before[0] == before[1]
    others: list[tinker.SamplingClient] = []
    for i in range(3):
        train(run, 1, first=i)
        others.append(snapshot(run))
    futures = [each.sample(prompt_of(TEXT), 2, types.SamplingParams(max_tokens=8, seed=1)) for each in others * 2]
    assert [sample(each, TEXT, 2) for each in samplers] == before
    results = [sampled(future.result()) for future in futures]
    assert results[:3] == results[3:]


# 25
def test_a_sample_outlives_the_polls_of_its_client(small: LiveServer, owner: tinker.ServiceClient):
    sampler = owner.create_sampling_client(base_model=new_run(owner).get_info().model_data.model_name).result()
    params = types.SamplingParams(max_tokens=200, seed=2, stop=[])
    futures = [sampler.sample(prompt_of(TEXT), 4, params) for _ in range(4)]
    with pytest.raises(TimeoutError):
        futures[-1].result(timeout=0.05)
    results = [sampled(future.result()) for future in futures]
    assert all(len(each.tokens) == 200 for result in results for each in result)
    assert results == [results[0]] * 4
