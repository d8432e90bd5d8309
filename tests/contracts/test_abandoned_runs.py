"""Contract 32: a run whose client has gone is closed, with its work saved first."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import tinker

from tests.contracts.loops import connect, new_run, resume, train
from tests.live_server import environment, start_server

CONFIG = """
[gateway]
session_timeout_s = 11
"""
CLIENT = """
import sys, time
from tests.contracts.loops import connect, new_run, train
run = new_run(connect(*sys.argv[1:]))
train(run, 3)
print(run.model_id, flush=True)
time.sleep(600)
"""
ROOT = Path(__file__).parents[2]
EXPIRES_WITHIN_S = 200.0  # silence, and the next sweep


# 32
@pytest.mark.slow
def test_the_work_of_a_client_that_has_gone_is_saved_and_goes_on(tiny_model_dir: Path, tmp_path: Path):
    (tmp_path / "openrl.toml").write_text(CONFIG)
    live = start_server(tiny_model_dir, tmp_path / "data", "--config", str(tmp_path / "openrl.toml"))
    path = {**environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = (sys.executable, "-W", "ignore", "-c", CLIENT, live.url, live.key)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=path) as client,
        connect(live.url, live.key) as service,
    ):
        assert client.stdout is not None
        run_id = client.stdout.readline().strip()
        client.kill()
        undisturbed = new_run(service)
        train(undisturbed, 3)
        saved = expired_checkpoint(tinker.RestClient(base_url=live.url, api_key=live.key), run_id)
        assert saved.tinker_path == f"tinker://{run_id}/weights/expired-000006"
        assert train(resume(service, saved.tinker_path), 2) == train(undisturbed, 2)
        stranger = tinker.RestClient(base_url=live.url, api_key=live.other_key)
        with pytest.raises(tinker.NotFoundError):
            stranger.list_checkpoints(run_id).result()
    live.stop()


def expired_checkpoint(rest: tinker.RestClient, run_id: str) -> tinker.types.Checkpoint:
    """The only checkpoint of the run, once there is one."""
    deadline = time.monotonic() + EXPIRES_WITHIN_S
    while not (found := rest.list_checkpoints(run_id).result().checkpoints):
        assert time.monotonic() < deadline, f"nothing was saved within {EXPIRES_WITHIN_S} s"
        time.sleep(1)
    [saved] = found
    return saved
