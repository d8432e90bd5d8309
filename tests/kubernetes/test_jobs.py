"""What runs inside the cluster through the SDK alone: the smoke test of `helm test`, and one of the three RL loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.chart import CHART, EXAMPLES, by_kind, render
from tests.live_server import MODEL_NAME, LiveServer, environment


def test_the_smoke_test_trains_and_samples(server: LiveServer, tmp_path: Path):
    """With the environment that its pod has; `openrl` is one of the image's programs."""
    (pod,) = by_kind(render({}), "Pod")
    names = {each["name"] for each in pod["spec"]["containers"][0]["env"]}
    program = tmp_path / "openrl"
    program.write_text(f"#!{sys.executable}\nfrom openrl.cli.main import main\nmain()\n")
    program.chmod(0o755)
    given = {"TINKER_BASE_URL": server.url, "SMOKE_MODEL": MODEL_NAME, "OPENRL_DATA_DIR": str(server.data_dir)}
    assert set(given) <= names
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(CHART / "files" / "smoke.py")],
        env={**environment(), **given, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "step 3: loss" in done.stdout
    assert "sampled [" in done.stdout


@pytest.mark.slow
def test_three_loops_at_once_come_to_their_end(server: LiveServer):
    """As the Indexed Job runs them: one process for each index."""
    job = yaml.safe_load((EXAMPLES / "rl-loops" / "job.yaml").read_text())
    names = {each["name"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    given = {
        "TINKER_BASE_URL": server.url,
        "TINKER_API_KEY": server.key,
        "RL_MODEL": MODEL_NAME,
        "RL_RATE": "1e-2",
        "RL_STEPS": "3",
    }
    assert set(given) <= names
    loops = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLES / "rl-loops" / "rl_loop.py")],
            env={**environment(), **given, "JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(job["spec"]["completions"])
    ]
    outputs = [loop.communicate(timeout=280)[0] for loop in loops]
    for index, (loop, output) in enumerate(zip(loops, outputs, strict=True)):
        assert loop.returncode == 0
        rewards = [float(line.split()[-1]) for line in output.splitlines() if " step " in line]
        assert len(rewards) == 3
        assert all(0.0 < reward < 1.0 for reward in rewards)
        assert f"loop {index} saved tinker://" in output
