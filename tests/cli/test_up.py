"""`openrl up` as a command: what it says, what it leaves, how it ends."""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from openrl.cli.up import up
from openrl.errors import InvalidRequest
from tests.kubernetes.up_cluster import LIMIT_S, deployment, outside, service
from tests.live_server import MODEL_NAME, OPENRL, openrl

VALUES = {
    "postgres": {"enabled": True},
    "models": [{"name": MODEL_NAME, "path": "/cache/tiny"}],
    "modelCache": {"kind": "pvc", "existingClaim": "models"},
    "gateway": {"replicas": 1, "drainDelaySeconds": 0},
    "scheduler": {"replicas": 1},
    "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
}


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Every user may enter it: PostgreSQL runs as another one where the tests are root's."""
    directory = Path(tempfile.mkdtemp(prefix="openrl-up-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_it_says_when_all_is_ready_and_ctrl_c_lets_it_end(tmp_path: Path):
    manifests = tmp_path / "manifests.yaml"
    probe = "readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 0.1}\n"
    manifests.write_text(deployment("app", container=probe) + service("app", port=8000))
    command = (*OPENRL, "up", "-m", str(manifests), "--dir", str(tmp_path / "up"))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=outside(), stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "All pods are ready: app-0\n"
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, shown
    assert "app-0: Running, ready 1/1, restarts 0" in shown
    assert "app-0: Succeeded, ready 0/1, restarts 0" in shown
    assert "app-0 | ended" in shown
    assert (tmp_path / "up" / "pods" / "app-0" / "main.log").read_text().endswith("asked to end\nended\n")


AUTOSCALER = """
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{name: app}}
spec:
  scaleTargetRef: {{kind: Deployment, name: app}}
  minReplicaCount: 0
  maxReplicaCount: 2
  pollingInterval: 0.2
  cooldownPeriod: 1
  triggers:
    - {{type: metrics-api, metadata: {{url: "http://app.default.svc/file{file}", valueLocation: wanted_workers}}}}
"""


@pytest.mark.usefixtures("network_namespaces")
def test_with_namespaces_pods_have_their_own_follow_their_autoscaler_and_leave_nothing(open_directory: Path):
    """A second Deployment answers for the scheduler: what is in a file is what is wanted."""
    wanted = open_directory / "wanted.json"
    wanted.write_text('{"wanted_workers": 5}')
    probe = "readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 0.1}\n"
    manifests = open_directory / "manifests.yaml"
    scaler = AUTOSCALER.format(file=wanted).replace("//app.", "//signal.")
    texts = [deployment("app", container=probe), deployment("signal", container=probe), service("signal"), scaler]
    manifests.write_text("".join(texts))
    command = (*OPENRL, "up", "--netns", "-m", str(manifests), "--dir", str(open_directory / "up"))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=outside(), stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        shown = list[str]()

        def see(line: str) -> None:
            """Until it has been shown."""
            assert process.stderr is not None
            while line not in (shown[-1:] or [""])[0]:
                shown.append(process.stderr.readline())
                assert shown[-1], "".join(shown)

        try:
            see("signal-0: Running, ready 1/1")
            see("Deployment/app: 1 -> 2 replicas, 5 wanted")
            see("app-1: Running, ready 1/1")
            found = re.search(r"^10\.231\.(\d+)\.", (open_directory / "up" / "hosts").read_text(), re.MULTILINE)
            assert found is not None
            assert len(list(Path("/run/netns").glob(f"orl{found[1]}-*"))) == 3
            wanted.write_text('{"wanted_workers": 0}')
            see("Deployment/app: 2 -> 0 replicas, 0 wanted")
            wanted.write_text('{"wanted_workers": 1}')
            see("Deployment/app: 0 -> 1 replicas, 1 wanted")
            see("app-0: Running, ready 1/1")
            process.send_signal(signal.SIGINT)
            output, rest = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 0, "".join(shown) + rest
    assert "All pods are ready: app-0, signal-0" in output
    assert not list(Path("/run/netns").glob(f"orl{found[1]}-*"))


def test_what_cannot_be_run_is_told(tmp_path: Path):
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(deployment("app", container="envFrom: [{secretRef: {name: keys}}]\n"))
    directory = tmp_path / "up"
    with pytest.raises(InvalidRequest, match=r"app-0 needs Secret 'keys', which none of the manifests has"):
        up(manifests=[manifests], directory=directory, port=0)
    with pytest.raises(InvalidRequest, match="cannot be read: No such file"):
        up(manifests=[tmp_path / "none.yaml"], directory=directory)
    with pytest.raises(InvalidRequest, match="--claim 'a=/none' must be NAME=DIR"):
        up(manifests=[manifests], directory=directory, claim=["a=/none"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chart_runs_without_namespaces_and_passes_its_own_test(tiny_model_dir: Path, open_directory: Path):
    """As on a laptop: plain processes on loopback, PostgreSQL of this machine, blobs in a directory."""
    values = open_directory / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    options = ("-f", str(values), "--dir", str(open_directory / "up"), "--claim", f"models={tiny_model_dir.parent}")
    for _ in range(2):  # the second time over what the first has left
        done = openrl("up", *options, "--port", "0", "--test", timeout_s=400.0)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "export TINKER_API_KEY=" in done.stdout
        assert "sampled [" in done.stderr
