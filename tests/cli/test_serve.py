import gc
import json
import os
import re
import signal
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.live_server import MODEL_NAME, LiveServer, openrl, start_server

# The SDK leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]
DATUM = types.Datum(
    model_input=types.ModelInput.from_ints(TOKENS[:-1]),
    loss_fn_inputs={"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)},  # pyright: ignore[reportArgumentType]
)


def connect(server: LiveServer, key: str) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=server.url, api_key=key)


def new_run(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model=MODEL_NAME, rank=4, seed=3).result()


def train(run: tinker.TrainingClient, num_steps: int) -> list[float]:
    """Losses of pipelined steps."""
    losses: list[float] = []
    for _ in range(num_steps):
        passed = run.forward_backward([DATUM, DATUM], "cross_entropy")
        stepped = run.optim_step(types.AdamParams(learning_rate=1e-2))
        losses.append(passed.result().metrics["loss:sum"])
        stepped.result()
    return losses


@pytest.fixture(autouse=True)
def _no_sockets_left_to_later_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def own_server(tiny_model_dir: Path, tmp_path: Path) -> Iterator[LiveServer]:
    live = start_server(tiny_model_dir, tmp_path / "data")
    yield live
    if live.process.poll() is None:
        live.kill()


def test_a_run_learns_is_saved_sampled_and_hidden_from_the_other_tenant(server: LiveServer):
    mine, other = connect(server, server.key), connect(server, server.other_key)
    run = new_run(mine)
    losses = train(run, 6)
    assert losses[-1] < losses[0]
    path = run.save_state("end").result().path
    sampler = run.save_weights_and_get_sampling_client().result()
    prompt = types.ModelInput.from_ints(TOKENS[:3])
    params = types.SamplingParams(max_tokens=4, temperature=0.0)
    tokens = sampler.sample(prompt, num_samples=2, sampling_params=params).result().sequences[0].tokens
    assert len(tokens) == 4
    restored = mine.create_training_client_from_state_with_optimizer(path).result()
    assert train(restored, 2) == train(run, 2)
    with pytest.raises(tinker.NotFoundError):
        other.create_training_client_from_state(path).result()


def test_the_samplers_logprobs_are_the_trainers(server: LiveServer):
    run = new_run(connect(server, server.key))
    train(run, 2)
    trained = run.forward([DATUM], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].data
    sampler = run.save_weights_and_get_sampling_client().result()
    sampled = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()[1:]
    assert sampled == pytest.approx(trained, abs=1e-5)


def test_a_worker_killed_in_the_middle_of_training_changes_no_number(own_server: LiveServer):
    service = connect(own_server, own_server.key)
    undisturbed = train(new_run(service), 6)
    run = new_run(service)
    losses = train(run, 3)
    [worker] = own_server.worker_pids
    passed = run.forward_backward([DATUM, DATUM], "cross_entropy")
    os.kill(worker, signal.SIGKILL)
    run.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    losses.append(passed.result().metrics["loss:sum"])
    assert losses + train(run, 2) == undisturbed
    assert own_server.worker_pids != [worker]


def test_a_server_killed_and_started_again_goes_on_with_its_runs(own_server: LiveServer, tiny_model_dir: Path):
    service = connect(own_server, own_server.key)
    undisturbed = train(new_run(service), 6)
    run = new_run(service)
    losses = train(run, 3)
    own_server.kill()
    port = own_server.url.rpartition(":")[2]
    again = start_server(tiny_model_dir, own_server.data_dir, "--port", port)
    try:
        assert (again.url, again.key) == (own_server.url, own_server.key)
        assert losses + train(run, 3) == undisturbed
        assert again.stop() == 0
    finally:
        again.kill()


def test_sigterm_ends_server_and_worker_and_a_second_server_may_start(own_server: LiveServer, tiny_model_dir: Path):
    arguments = ["--model", f"x={tiny_model_dir}", "--port", "0", "--data-dir", str(own_server.data_dir)]
    second = openrl("serve", *arguments)
    assert second.returncode == 1
    assert re.fullmatch(r"openrl: another server \(process \d+\) uses the data directory .*\n", second.stderr)
    [worker] = own_server.worker_pids
    assert own_server.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    log = (own_server.data_dir / "server.log").read_text()
    assert "lost" not in log
    assert "died" not in log


def test_the_worker_of_a_killed_server_ends_by_itself(own_server: LiveServer):
    [worker] = own_server.worker_pids
    own_server.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_the_ready_file_and_the_key_file_are_for_their_owner_only(server: LiveServer):
    for name in ("ready.json", "key"):
        assert stat.S_IMODE((server.data_dir / name).stat().st_mode) == 0o600
    assert json.loads((server.data_dir / "ready.json").read_text()) == {"url": server.url, "key": server.key}


def test_the_log_prints_what_a_shell_needs(server: LiveServer):
    lines = (server.data_dir / "server.log").read_text().splitlines()
    assert f"export TINKER_BASE_URL={server.url}" in lines
    assert f"export TINKER_API_KEY={server.key}" in lines


def test_metrics_and_readiness_answer_without_a_key(server: LiveServer):
    with urllib.request.urlopen(f"{server.url}/readyz") as reply:
        assert reply.status == 200
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        assert b"openrl_http_requests_total" in reply.read()


def test_a_bad_key_is_refused(server: LiveServer):
    request = urllib.request.Request(f"{server.url}/api/v1/training_runs", headers={"X-API-Key": "tml-wrong"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 401
    caught.value.close()


def test_runs_are_listed_by_tenant_while_the_server_runs(server: LiveServer):
    new_run(connect(server, server.other_key))
    listed = openrl("runs", "--json", "--tenant", "other", "--data-dir", str(server.data_dir))
    rows = json.loads(listed.stdout)
    assert rows
    assert {row["tenant"] for row in rows} == {"other"}
    assert openrl("runs", "--data-dir", str(server.data_dir)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent"], "model 'absent' was not found"),
        ([], "no model to serve"),
        (["--model", "x=/tmp"], "model 'x': /tmp/config.json does not exist"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(arguments: list[str], message: str, tmp_path: Path):
    result = openrl("serve", *arguments, "--port", "0", "--data-dir", str(tmp_path))
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_does_not_load_ends_the_server_with_the_reason(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    config = {"vocab_size": 8, "max_position_embeddings": 16, "model_type": "no_such_family"}
    (model / "config.json").write_text(json.dumps(config))
    result = openrl("serve", "--model", f"odd={model}", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 1
    assert "worker-0 cannot start" in result.stderr
    assert "Traceback" not in result.stderr
