"""`openrl up --netns` with a stub as the pods' program: what a pod sees, and who may talk to whom."""

import os

import pytest

from openrl.cluster.cluster import Cluster
from openrl.cluster.networks import Namespaces
from tests.kubernetes.up_cluster import CONFIG, deployment, get, service, settle, small_cluster

pytestmark = pytest.mark.usefixtures("network_namespaces")
READY = "readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 0.05}\n"
POD = """
securityContext: {runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001}
volumes:
  - {name: config, configMap: {name: settings}}
  - {name: data, emptyDir: {}}
"""
CONTAINER = f"""{READY}
securityContext: {{readOnlyRootFilesystem: true}}
volumeMounts:
  - {{name: config, mountPath: /etc/app, readOnly: true}}
  - {{name: data, mountPath: /data}}
"""
POLICIES = """
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{podSelector: {}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: back}
spec:
  podSelector: {matchLabels: {app: back}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: front}}}], ports: [{protocol: TCP, port: http}]}]
"""


async def run(cluster: Cluster, pod: str, command: str) -> str:
    """What a shell in a pod says."""
    _, output = await cluster.pods[pod].execute(("sh", "-c", f"{{ {command}; }} 2>&1"))
    return output.strip()


async def test_a_pod_sees_its_files_its_user_and_a_machine_that_it_cannot_change():
    async with small_cluster([CONFIG, deployment("app", container=CONTAINER, pod=POD)], separate=True) as cluster:
        await settle(cluster)
        assert await get(cluster.pods["app-0"].address, "/file/etc/app/color") == "green"
        assert await run(cluster, "app-0", "id -u; id -G; whoami") == "10001\n10001\npod"
        assert "Read-only file system" in await run(cluster, "app-0", "touch /etc/mine")
        assert "Read-only file system" in await run(cluster, "app-0", "touch /etc/app/mine")
        assert await run(cluster, "app-0", "touch /data/mine && ls /data") == "mine"
        assert await run(cluster, "app-0", "ls -A /root | grep -v pyenv") == ""


async def test_only_what_policies_allow_gets_through_by_service_and_directly():
    texts = [
        *(deployment(name, container=READY) for name in ("front", "back", "stranger")),
        service("back", port=7600),
        service("direct", headless=True).replace("app: direct", "app: back"),
        POLICIES,
    ]
    async with small_cluster(texts, separate=True) as cluster:
        await settle(cluster)
        front, back, stranger = (cluster.of(name)[0].address for name in ("front", "back", "stranger"))
        assert await get(front, "/connect/back.default.svc:7600") == "open"
        assert await get(front, "/connect/direct:8000") == "open"
        assert await get(front, "/lookup/direct") == back
        assert await get(stranger, "/connect/back:7600") in ("refused", "cut")
        assert await get(stranger, f"/connect/{back}:8000") == "dropped"
        assert await get(back, f"/connect/{front}:8000") == "dropped"
        assert await get(back, f"/connect/{cluster.network.host_address}:7599") == "dropped"


async def test_a_pod_that_is_cut_off_is_not_ready_until_it_is_back():
    async with small_cluster([deployment("app", container=READY)], separate=True) as cluster:
        await settle(cluster)
        pod = cluster.pods["app-0"]
        assert isinstance(cluster.network, Namespaces)
        await cluster.network.set_link(pod.address, up=False)
        await settle(cluster, lambda: not pod.is_ready)
        await cluster.network.set_link(pod.address, up=True)
        await settle(cluster)
        assert pod.restarts == 0


async def test_nothing_is_left_behind():
    async with small_cluster([deployment("app", container=READY)], separate=True) as cluster:
        await settle(cluster)
        assert isinstance(cluster.network, Namespaces)
        bridge, namespace = cluster.network.bridge, cluster.network.namespace(cluster.pods["app-0"].address)
        assert os.path.exists(f"/run/netns/{namespace}")
        assert os.path.exists(f"/sys/class/net/{bridge}")
    assert not os.path.exists(f"/run/netns/{namespace}")
    assert not os.path.exists(f"/sys/class/net/{bridge}")
