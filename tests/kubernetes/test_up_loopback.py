"""`openrl up` without namespaces: pods as plain processes on loopback addresses, with a stub as their program."""

import httpx
import pytest

from openrl.cluster.cluster import Cluster
from tests.kubernetes.up_cluster import CONFIG, deployment, get, service, settle, small_cluster

PROBES = """
startupProbe: {httpGet: {path: /startupz, port: http}, periodSeconds: 0.05, timeoutSeconds: 20, failureThreshold: 1200}
readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 0.05, timeoutSeconds: 20, failureThreshold: 2}
livenessProbe: {httpGet: {path: /livez, port: http}, periodSeconds: 0.05, timeoutSeconds: 20, failureThreshold: 2}
"""
PLACES = """
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
  - {name: TOKEN, valueFrom: {secretKeyRef: {name: hidden, key: token}}}
  - {name: URL, value: "http://:$(TOKEN)@back.default.svc:7600/x"}
volumeMounts:
  - {name: config, mountPath: /etc/openrl}
  - {name: data, mountPath: /data}
"""
VOLUMES = """
volumes:
  - {name: config, configMap: {name: settings}}
  - {name: data, emptyDir: {}}
"""


def log_of(cluster: Cluster, pod: str) -> list[str]:
    return cluster.log_of(cluster.pods[pod]).read_text().splitlines()


async def test_pods_get_their_values_names_and_files_and_are_probed_in_order():
    texts = [
        CONFIG,
        deployment("front", replicas=2, container=PLACES + PROBES, pod=VOLUMES),
        deployment("back", container=PROBES),
        service("back", port=7600),
    ]
    async with small_cluster(texts) as cluster:
        await settle(cluster)
        front, second = cluster.of("front")
        assert front.address != second.address
        back = cluster.services.addresses["back"]
        assert await get(front.address, "/name") == "front-0"
        assert await get(front.address, "/env/COLOR") == "green"
        assert await get(front.address, "/env/URL") == f"http://:s3cret@{back}:7600/x"
        volumes = cluster.log_of(front).parent / "volumes"
        assert (volumes / "config" / "app.toml").read_text() == (
            f'listen = "{front.address}:9090"\ndatabase = "tcp:{back}:7600"\nblobs = "file://{volumes}/data/blobs"\n'
        )
        asked = [line for line in log_of(cluster, "front-0") if line.startswith("asked")]
        assert asked[0] == "asked /startupz"
        assert asked.index("asked /readyz") < asked.index("asked /livez")


async def test_a_service_gives_connections_only_to_pods_that_are_ready():
    env = "env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n"
    texts = [deployment("back", replicas=2, container=env + PROBES), service("back", port=8000)]
    async with small_cluster(texts) as cluster:
        await settle(cluster)
        address = cluster.services.addresses["back"]
        assert {await get(address, "/name") for _ in range(4)} == {"back-0", "back-1"}
        await get(cluster.pods["back-0"].address, "/set?readyz=503")
        await settle(cluster, lambda: not cluster.pods["back-0"].is_ready)
        assert {await get(address, "/name") for _ in range(4)} == {"back-1"}
        await get(cluster.pods["back-1"].address, "/set?readyz=503")
        await settle(cluster, lambda: not cluster.pods["back-1"].is_ready)
        with pytest.raises(httpx.HTTPError):
            await get(address, "/name")


async def test_a_pod_that_ends_or_is_no_longer_alive_starts_again():
    texts = [deployment("app", container=PROBES)]
    async with small_cluster(texts) as cluster:
        await settle(cluster)
        pod = cluster.pods["app-0"]
        await get(pod.address, "/set?livez=500")
        await settle(cluster, lambda: pod.restarts == 1 and pod.is_ready)
        assert "asked to end" in log_of(cluster, "app-0")
        assert pod.reason == "liveness probe failed: /livez answered 500"
        pod.kill()
        await settle(cluster, lambda: pod.restarts == 2 and pod.is_ready)
        assert pod.reason == "ended with status -9"


async def test_a_pod_drains_before_it_ends_and_is_killed_when_it_does_not():
    hook = "lifecycle: {preStop: {httpGet: {path: /drain, port: http}}}\n"
    stubborn = 'env: [{name: STUBBORN, value: "1"}]\n'
    texts = [
        deployment("good", container=hook + PROBES),
        deployment("bad", container=stubborn + PROBES, pod="").replace("PeriodSeconds: 5", "PeriodSeconds: 0.2"),
    ]
    async with small_cluster(texts) as cluster:
        await settle(cluster)
        good, bad = cluster.pods["good-0"], cluster.pods["bad-0"]
        logs = {pod.plan.name: cluster.log_of(pod) for pod in (good, bad)}
        await cluster.end()
        lines = logs["good-0"].read_text().splitlines()
        assert [line for line in lines if line in ("asked /drain", "asked to end", "ended")] == [
            "asked /drain",
            "asked to end",
            "ended",
        ]
        assert good.containers[0].status == 0
        assert bad.containers[0].status == -9
        assert "asked to end" in logs["bad-0"].read_text()


async def test_scaling_makes_pods_and_ends_the_last_ones():
    async with small_cluster([deployment("app", container=PROBES)]) as cluster:
        await cluster.scale("Deployment/app", 3)
        await settle(cluster)
        assert sorted(cluster.pods) == ["app-0", "app-1", "app-2"]
        await cluster.scale("Deployment/app", 1)
        assert sorted(cluster.pods) == ["app-0"]
        await cluster.scale("Deployment/app", 0)
        assert not cluster.pods
