"""Clusters of small manifests, for tests of the runner."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from openrl.cluster.cluster import Cluster, Options, run_cluster
from openrl.cluster.container_state import BackOff
from openrl.cluster.manifests import read_manifests
from openrl.cluster.networks import Loopback, Namespaces, Network

STUB = Path(__file__).with_name("stub_server.py")
ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0

CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  app.toml: |
    listen = "0.0.0.0:9090"
    database = "tcp:back.default.svc:7600"
    blobs = "file:///data/blobs"
  color: green
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {token: s3cret}
"""


def deployment(name: str, *, container: str, replicas: int = 1, pod: str = "", kind: str = "Deployment") -> str:
    """A workload whose one container runs the stub at port 8000; `container` and `pod` are more of their YAML."""
    return f"""
---
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  serviceName: {name}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, app.kubernetes.io/component: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
{indented(pod, 6)}
      containers:
        - name: main
          image: registry.example/stub:1
          command: [python, {STUB}, "0.0.0.0:8000"]
          ports: [{{name: http, containerPort: 8000}}]
{indented(container, 10)}
"""


def service(name: str, *, port: int = 80, headless: bool = False) -> str:
    """In front of the workload of that name."""
    cluster_ip = "clusterIP: None" if headless else ""
    return f"""
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  {cluster_ip}
  selector: {{app: {name}}}
  ports: [{{name: http, port: {port}, targetPort: http}}]
"""


def indented(text: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in text.strip("\n").splitlines())


def outside() -> dict[str, str]:
    """The environment that a person would have, with these sources."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}


@asynccontextmanager
async def small_cluster(
    texts: Iterable[str], *, separate: bool = False, back_off: BackOff | None = None
) -> AsyncGenerator[Cluster]:
    """Everything has been started; its directory may be entered by all users."""
    directory = Path(tempfile.mkdtemp(prefix="openrl-up-"))
    directory.chmod(0o755)
    network: Network = Namespaces(directory) if separate else Loopback()
    options = Options(directory, outside=outside(), back_off=back_off or BackOff(0.05, 0.2))
    try:
        async with run_cluster(read_manifests(texts), network, options) as cluster:
            async with asyncio.timeout(LIMIT_S):
                await cluster.install()
            yield cluster
    finally:
        shutil.rmtree(directory)


async def settle(cluster: Cluster, condition: Callable[[], bool] | None = None) -> None:
    """Until that holds; without one: until every pod is ready."""
    async with asyncio.timeout(LIMIT_S):
        await cluster.wait_until(condition or cluster.is_ready)


async def get(address: str, path: str) -> str:
    """What a pod's stub answers at its port 8000."""
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(f"http://{address}:8000{path}", timeout=LIMIT_S)
    return reply.text


async def get_json(url: str) -> dict[str, object]:
    """What a server answers, whatever its status."""
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(url, timeout=LIMIT_S)
    return reply.json()
