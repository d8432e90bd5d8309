"""The rendered chart, run: two gateways, schedulers and workers, PostgreSQL and S3, in network namespaces.

A client in a namespace of its own trains and samples; in the slow test while pieces are killed, cut off and told to
end, and what it gets is to the last bit what a quiet run gives.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from openrl.cluster.chart import find_chart, render
from openrl.cluster.cluster import Cluster, Options, run_cluster
from openrl.cluster.container_state import BackOff
from openrl.cluster.images import OPENRL
from openrl.cluster.made_secrets import add_missing
from openrl.cluster.manifests import read_manifests
from openrl.cluster.networks import Namespaces
from openrl.cluster.pod_runner import PodRunner
from openrl.cluster.programs import Program
from tests.kubernetes.up_cluster import get_json, outside, settle

pytestmark = [pytest.mark.usefixtures("network_namespaces"), pytest.mark.timeout(900)]
LIMIT_S = 240.0
VALUES = {
    "postgres": {"enabled": True},
    "models": [{"name": "tiny", "path": "/cache/tiny"}],
    "modelCache": {"kind": "pvc", "existingClaim": "models"},
    "objectStore": {
        "url": "s3://openrl/some/where",
        "endpoint": "http://s3:9000",  # a dot would make moto read a bucket in it
        "region": "us-east-1",
        "allowHttp": True,
        "existingSecret": "s3",
    },
    "networkPolicy": {"egressPorts": [9000]},
    "gateway": {"replicas": 2, "drainDelaySeconds": 1},
    "scheduler": {"replicas": 2, "patchDeletionCost": False},
    "poolDefaults": {"drainSeconds": 30},
    "pools": {"default": {"replicas": 2}},
    "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    "config": {
        "gateway": {"long_poll_s": 2},
        "scheduler": {"lease_s": 4, "worker_silence_s": 8, "max_replay_s": 0.05},
        "rpc": {"silence_s": 6},
    },
}
S3 = """
apiVersion: v1
kind: Secret
metadata: {name: s3}
stringData: {AWS_ACCESS_KEY_ID: test-key-id, AWS_SECRET_ACCESS_KEY: test-secret}
---
apiVersion: v1
kind: Service
metadata: {name: s3}
spec:
  selector: {app: s3}
  ports: [{port: 9000}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: s3}
spec:
  selector: {matchLabels: {app: s3}}
  template:
    metadata: {labels: {app: s3}}
    spec:
      containers:
        - name: s3
          image: example/moto
          command: [python, -m, moto.server, -H, 0.0.0.0, -p, "9000"]
          readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
---
apiVersion: batch/v1
kind: Job
metadata: {name: bucket}
spec:
  template:
    metadata: {labels: {app: bucket}}
    spec:
      restartPolicy: Never
      containers:
        - name: bucket
          image: example/boto
          command:
            - python
            - -c
            - "import boto3; boto3.client('s3', endpoint_url='http://s3:9000').create_bucket(Bucket='openrl')"
          envFrom: [{secretRef: {name: s3}}]
          env: [{name: AWS_DEFAULT_REGION, value: us-east-1}]
"""


@dataclass
class History:
    """Which states each pod went through."""

    pods: dict[str, PodRunner] = field(default_factory=dict[str, PodRunner])
    seen: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def lines(self, pod: str, output: bytes) -> None:
        pass

    def changed(self) -> None:
        for name, pod in self.pods.items():
            started = all(each.is_started for each in pod.containers)
            state = f"{pod.phase}{' started' if started else ''}{' ready' if pod.is_ready else ''}"
            states = self.seen.setdefault(name, [])
            if not states or states[-1] != state:
                states.append(state)


@dataclass
class Client:
    """The process of `up_client`, in a namespace of its own."""

    process: asyncio.subprocess.Process

    async def hear(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def round(self, disturb: Callable[[], Awaitable[None]]) -> None:
        """Train while something happens; all must be as in peace."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        assert await self.hear() == "under way"
        await disturb()
        assert await self.hear() == "same"


@asynccontextmanager
async def whole_chart(model: Path, history: History) -> AsyncGenerator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="openrl-up-"))
    directory.chmod(0o755)
    (directory / "values.yaml").write_text(yaml.safe_dump(VALUES))
    for file in Path(shutil.copytree(model, directory / "claims" / "models" / "tiny")).iterdir():
        file.chmod(0o644)  # pods have users of their own
    manifests = read_manifests([render(find_chart(), [directory / "values.yaml"], "openrl", "default"), S3])
    add_missing(manifests, directory / "secrets.json")
    options = Options(directory, outside=outside(), back_off=BackOff(0.5, 2.0))
    try:
        async with run_cluster(manifests, Namespaces(directory), options, history, history.pods) as cluster:
            async with asyncio.timeout(LIMIT_S):
                await cluster.install()
                await cluster.wait_until(lambda: cluster.is_ready() or bool(troubled(cluster)))
            assert not troubled(cluster)
            yield cluster
    finally:
        if "OPENRL_TEST_KEEP" not in os.environ:
            shutil.rmtree(directory)


@asynccontextmanager
async def client_elsewhere(cluster: Cluster, num_steps: int) -> AsyncGenerator[Client]:
    """A client whose address no policy knows, with a key that a gateway has made; it has trained and sampled once."""
    create = (*OPENRL, "keys", "create", "--config", "/etc/openrl/openrl.toml")
    status, key = await cluster.of("gateway")[0].execute(create)
    assert status == 0, key
    address = await cluster.network.add_pod()
    script = (sys.executable, "-m", "tests.kubernetes.up_client", "http://openrl-gateway.default.svc", key.strip())
    program = Program((*script, str(num_steps)), {**outside(), "HOME": "/tmp", "TINKER_TELEMETRY": "0"})
    directory = Path(tempfile.mkdtemp())
    spawn = cluster.network.spawn(program, address, directory)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*spawn.argv, env=dict(spawn.env), stdin=pipe, stdout=pipe)
    try:
        client = Client(process)
        assert await client.hear() == "ready"
        yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        shutil.rmtree(directory)


def troubled(cluster: Cluster) -> list[str]:
    """Pods that start again and again, and why."""
    pods = cluster.pods.values()
    return [
        f"{pod.plan.name}: {pod.reason}, {cluster.log_of(pod).read_text()[-300:]}" for pod in pods if pod.restarts > 3
    ]


async def leader(cluster: Cluster) -> PodRunner:
    """The scheduler that leads."""
    for pod in cluster.of("scheduler"):
        if (await get_json(f"http://{pod.address}:9090/"))["status"] == "leading":
            return pod
    raise AssertionError("no scheduler leads")


async def all_ready(cluster: Cluster) -> None:
    async with asyncio.timeout(LIMIT_S):
        await cluster.wait_until(cluster.is_ready)


@pytest.mark.slow
async def test_a_client_elsewhere_trains_and_samples_whatever_is_killed_cut_off_or_told_to_end(tiny_model_dir: Path):
    history = History()
    async with whole_chart(tiny_model_dir, history) as cluster:
        check_order(history)
        network = cluster.network
        assert isinstance(network, Namespaces)
        async with client_elsewhere(cluster, num_steps=10) as client:

            async def kill(pod: PodRunner) -> None:
                restarts = pod.restarts
                pod.kill()
                await settle(cluster, lambda: pod.restarts > restarts)

            async def cut_off(pod: PodRunner) -> None:
                await network.set_link(pod.address, up=False)
                await settle(cluster, lambda: not pod.is_ready)
                await network.set_link(pod.address, up=True)

            async def tell_to_end(pod: PodRunner) -> None:
                pod.stop()
                async with asyncio.timeout(LIMIT_S):
                    await cluster.wait_until(lambda: cluster.pods[pod.plan.name] is not pod)
                assert [each.status for each in pod.containers] == [0]  # by itself, within its grace period

            for what in (kill, tell_to_end):
                await client.round(lambda what=what: what(cluster.of("worker")[0]))
                await all_ready(cluster)
                await client.round(lambda what=what: what(cluster.of("gateway")[0]))
                await all_ready(cluster)
                leading = await leader(cluster)
                await client.round(lambda what=what, leading=leading: what(leading))
                await all_ready(cluster)
            await client.round(lambda: kill(cluster.of("postgres")[0]))
            await all_ready(cluster)
            await client.round(lambda: cut_off(cluster.of("worker")[1]))
            await all_ready(cluster)


async def test_a_client_elsewhere_trains_and_samples_and_policies_hold(tiny_model_dir: Path):
    history = History()
    async with whole_chart(tiny_model_dir, history) as cluster:
        check_order(history)
        async with client_elsewhere(cluster, num_steps=2):
            await check_policies(cluster)


@pytest.mark.slow
async def test_the_charts_own_test_passes(tiny_model_dir: Path):
    async with whole_chart(tiny_model_dir, History()) as cluster:
        async with asyncio.timeout(LIMIT_S):
            await cluster.run_hooks("test")


async def check_policies(cluster: Cluster) -> None:
    """Every part reaches whom it calls, and nobody else."""
    pods = {name: cluster.of(name)[0] for name in ("gateway", "worker", "postgres")}
    pods["scheduler"] = await leader(cluster)
    ports = {"gateway": 8000, "scheduler": 7600, "worker": 9090, "postgres": 5432}
    may = {
        "gateway": {"gateway", "worker", "postgres"},
        "scheduler": {"gateway", "worker", "postgres"},
        "worker": {"gateway", "scheduler"},
    }
    asked = [(one, other) for one in may for other in ports if pods[one] is not pods[other]]
    answers = await asyncio.gather(
        *(reaches(pods[one], f"{pods[other].address}:{ports[other]}") for one, other in asked)
    )
    got = {pair for pair, answer in zip(asked, answers, strict=True) if answer}
    assert got == {(one, other) for one, others in may.items() for other in others if one != other}
    assert not await reaches(pods["gateway"], f"{cluster.network.host_address}:7599")  # nor the machine
    assert await reaches(pods["gateway"], f"{pods['worker'].address}:9090")


async def reaches(pod: PodRunner, target: str) -> bool:
    """Whether a connection from inside the pod comes about."""
    code = f"from tests.kubernetes.stub_server import connect; print(connect({target!r}))"
    status, answer = await pod.execute(("python", "-c", code))
    assert status == 0, answer
    return answer.strip() in ("open", "cut")


def check_order(history: History) -> None:
    """Startup before readiness, databases and migration before everything else."""
    for name, states in history.seen.items():
        if any("ready" in state for state in states):
            first = next(number for number, state in enumerate(states) if "ready" in state)
            assert all("ready" not in state for state in states[:first]), name
            assert any("started" in state for state in states[: first + 1]), name
    order = list(history.seen)
    assert order.index("openrl-postgres-0") < order.index("openrl-gateway-0")
