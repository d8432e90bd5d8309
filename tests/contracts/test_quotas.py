"""Quotas through the SDK: who is over one waits or is told, nobody else notices, nothing is lost."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import tinker
from tinker import types

from tests.contracts.conftest import http_client
from tests.contracts.loops import STEP, TEXT, backward, batch, connect, new_run, prompt_of, sample
from tests.contracts.raw_api import LONGEST_S, RawApi
from tests.live_server import LiveServer, openrl, start_server

CONFIG = "[gateway]\nlong_poll_s = 1.0\n"
RATE, BURST, NUM_TOKENS = 160, 80, 24
"""`NUM_TOKENS` are of one sample, prompt and answer."""


@pytest.fixture(scope="module")
def live(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of its own; quotas are there from its start on, so that no test waits for them."""
    directory = tmp_path_factory.mktemp("quotas")
    (directory / "openrl.toml").write_text(CONFIG)
    assert openrl("keys", "create", "--tenant", "default", "--data-dir", str(directory)).returncode == 0
    set_quotas(directory, "default", "--tokens-per-s", str(RATE), "--burst-tokens", str(BURST))
    running = start_server(tiny_model_dir, directory, "--config", str(directory / "openrl.toml"))
    yield running
    running.stop()


def set_quotas(directory: Path, *arguments: str, command: str = "set") -> None:
    done = openrl("admin", "quotas", command, *arguments, "--data-dir", str(directory))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def slow(live: LiveServer) -> Iterator[tinker.ServiceClient]:
    """The tenant with a rate."""
    with connect(live.url, live.key) as service:
        yield service


@pytest.fixture
def other(live: LiveServer) -> Iterator[tinker.ServiceClient]:
    with connect(live.url, live.other_key) as service:
        yield service


def draw(sampler: tinker.SamplingClient, num: int) -> "list[types.SampleResponse]":
    params = types.SamplingParams(max_tokens=NUM_TOKENS - 8, stop=[], seed=1)
    futures = [sampler.sample(prompt_of(TEXT[:8]), 1, params) for _ in range(num)]
    return [future.result() for future in futures]


def test_a_tenant_at_its_rate_is_slowed_to_it_and_the_other_is_not(
    slow: tinker.ServiceClient, other: tinker.ServiceClient
):
    mine, theirs = (each.create_sampling_client(base_model="tiny").result() for each in (slow, other))
    params = types.SamplingParams(max_tokens=NUM_TOKENS - 8, stop=[], seed=1)
    num = 20
    started = time.monotonic()
    futures = [mine.sample(prompt_of(TEXT[:8]), 1, params) for _ in range(num)]
    assert len(draw(theirs, num)) == num
    elapsed_s = time.monotonic() - started
    num_done = sum(future.future().done() for future in futures)
    assert num_done * NUM_TOKENS <= BURST + RATE * elapsed_s + NUM_TOKENS
    results = [future.result() for future in futures]
    elapsed_s = time.monotonic() - started
    assert num * NUM_TOKENS <= BURST + RATE * elapsed_s + NUM_TOKENS
    assert {len(result.sequences[0].tokens) for result in results} == {NUM_TOKENS - 8}
    # Training counts as well, in order: the step waits behind its gradient.
    run = new_run(slow)
    before = time.monotonic()
    passes = [run.forward_backward(batch(20), "cross_entropy") for _ in range(3)]
    run.optim_step(STEP).result()
    for each in passes:
        each.result()
    num_trained = 3 * sum(datum.model_input.length for datum in batch(20))
    assert num_trained <= BURST + RATE * (time.monotonic() - before) + num_trained / 3


def test_device_time_that_is_used_up_pauses_and_the_same_futures_finish_when_it_is_raised(
    live: LiveServer, other: tinker.ServiceClient
):
    run = new_run(other)
    sampler = other.create_sampling_client(base_model="tiny").result()
    backward(run, batch(2))
    set_quotas(live.data_dir, "other", "--gpu-seconds-month", "0.000001")
    with http_client(live.url, live.other_key) as http:
        raw = RawApi(http)
        _, told = raw.held_sample()
        assert told["queue_state"] == "paused_rate_limit"
        assert "quota gpu_seconds_month of this tenant:" in told["queue_state_reason"]
        assert "of 0.0 GPU-seconds are used; goes on at 20" in told["queue_state_reason"]
        training, drawn = (
            run.forward_backward(batch(2), "cross_entropy"),
            sampler.sample(prompt_of(TEXT[:4]), 2, types.SamplingParams(max_tokens=4, stop=[])),
        )
        step = run.optim_step(STEP)
        assert run.save_state("behind-them").future().done() is False
        assert not any(future.future().done() for future in (training, drawn, step))
        # What is not of tokens goes on: another run is made and saved.
        new_run(other).save_state("kept").result()
        set_quotas(live.data_dir, "other", command="clear")
        assert training.result().metrics["loss:sum"] > 0
        assert step.result().metrics
        assert [len(sequence.tokens) for sequence in drawn.result().sequences] == [4, 4]


def test_what_is_refused_leaves_everything_else_working(live: LiveServer, other: tinker.ServiceClient):
    run = new_run(other)
    set_quotas(live.data_dir, "other", "--stored-bytes", "1000", "--live-runs", "0")
    with pytest.raises(tinker.PermissionDeniedError, match="quota live_runs of this tenant is reached"):
        _repeat(lambda _: new_run(other))
    with pytest.raises(tinker.RequestFailedError):
        _repeat(lambda n: run.save_weights_for_sampler(f"early-{n}").result())
    with pytest.raises(tinker.RequestFailedError, match=r"quota stored_bytes of this tenant is reached: .* of 1,000"):
        run.save_state("large").result()
    rest = tinker.RestClient(base_url=live.url, api_key=live.other_key)
    names = {each.checkpoint_id for each in rest.list_checkpoints(run.model_id).result().checkpoints}
    assert "weights/large" not in names
    backward(run, batch(2))
    assert run.optim_step(STEP).result().metrics
    sampler = other.create_sampling_client(base_model="tiny").result()
    assert sample(sampler, TEXT[:4], max_tokens=2, seed=1)
    set_quotas(live.data_dir, "other", command="clear")


def _repeat(call: Callable[[int], object]) -> None:
    """Until it raises: what gateway and scheduler know of quotas is some seconds old."""
    deadline, n = time.monotonic() + LONGEST_S, 0
    while time.monotonic() < deadline:
        call(n)
        n += 1
    raise AssertionError("the quota does not take effect")


@pytest.mark.parametrize("num", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_requests_over_the_limits_are_all_answered(live: LiveServer, other: tinker.ServiceClient, num: int):
    """Nothing ends until some were refused; what was refused comes again by itself."""
    refused = _num_refused(live)
    set_quotas(live.data_dir, "other", "--queued-requests", "100", "--gpu-seconds-month", "0")
    sampler = other.create_sampling_client(base_model="tiny").result()
    params = types.SamplingParams(max_tokens=1, stop=[], seed=1)
    with http_client(live.url, live.other_key) as http:
        RawApi(http).held_sample()
    futures = [sampler.sample(prompt_of(TEXT[:4]), 1, params) for _ in range(num)]
    deadline = time.monotonic() + LONGEST_S
    while _num_refused(live) == refused:
        assert time.monotonic() < deadline, "nothing was over the limit"
        time.sleep(0.1)
    set_quotas(live.data_dir, "other", "--gpu-seconds-month", "default", "--running-requests", "16")
    run = new_run(other)
    passes = [run.forward_backward(batch(1, n), "cross_entropy") for n in range(10)]
    steps = [run.optim_step(STEP)]
    results = [future.result() for future in futures]
    assert len({tuple(result.sequences[0].tokens) for result in results}) == 1  # each of the same seed
    assert all(each.result().metrics for each in (*passes, *steps))
    set_quotas(live.data_dir, "other", command="clear")


def _num_refused(live: LiveServer) -> int:
    found = re.search(r'route="/api/v1/asample",status="429"} (\d+)', httpx.get(f"{live.url}/metrics").text)
    return 0 if found is None else int(found[1])
