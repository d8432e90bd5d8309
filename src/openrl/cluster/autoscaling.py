"""Follows the autoscalers of an installation: reads how many workers a pool should have, and has so many."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from openrl.cluster.cluster import Cluster
from openrl.cluster.manifests import AutoscalerObject, HorizontalPodAutoscaler, Manifests, ScaledObject
from openrl.cluster.services import find_service

WANTED = "openrl_pool_wanted_workers"
"""What the schedulers export; a metrics adapter serves it to HPAs."""
_HPA_POLLING_S = 15.0
"""How often Kubernetes looks at an HPA."""
_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of the number of replicas, and its pace."""

    least: int
    most: int
    polling_s: float
    cooldown_s: float  # what was wanted this long ago still keeps replicas


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Which number it reads, and whose replicas it changes."""

    workload: str  # "Deployment/NAME"
    url: str
    field: str  # of the JSON answer
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Reading:
    """What was wanted at a moment."""

    at: float
    wanted: int


def autoscalers_of(manifests: Manifests, namespace: str) -> tuple[list[Autoscaler], list[str]]:
    """Those that are followed, and the names of those that are not: they read what only a cluster measures."""
    followed: list[Autoscaler] = []
    others: list[str] = []
    for each in manifests.autoscalers:
        if (found := _autoscaler(each, manifests, namespace)) is not None:
            followed.append(found)
        else:
            others.append(f"{each.kind}/{each.metadata.name}")
    return followed, others


def _autoscaler(each: AutoscalerObject, manifests: Manifests, namespace: str) -> Autoscaler | None:
    target = each.spec.scale_target_ref
    workload = f"{target.kind}/{target.name}"
    match each:
        case ScaledObject(spec=spec):
            triggers = [one.metadata for one in spec.triggers if one.type == "metrics-api"]
            if len(spec.triggers) != 1 or not triggers or not {"url", "valueLocation"} <= triggers[0].keys():
                return None
            bounds = Bounds(spec.min_replica_count, spec.max_replica_count, spec.polling_interval, spec.cooldown_period)
            return Autoscaler(workload, triggers[0]["url"], triggers[0]["valueLocation"], bounds)
        case HorizontalPodAutoscaler(spec=spec):
            metrics = [one.external.metric for one in spec.metrics if one.external is not None]
            service = find_service(manifests.services, "scheduler")
            if len(spec.metrics) != 1 or not metrics or metrics[0].name != WANTED or service is None:
                return None
            pool = metrics[0].selector.match_labels.get("pool", "")
            url = f"http://{service.metadata.name}.{namespace}.svc:{service.spec.ports[0].port}/autoscale/{pool}"
            cooldown_s = spec.behavior.scale_down.stabilization_window_seconds
            bounds = Bounds(spec.min_replicas, spec.max_replicas, _HPA_POLLING_S, cooldown_s)
            return Autoscaler(workload, url, "wanted_workers", bounds)


def replicas_for(readings: Iterable[Reading], now: float, bounds: Bounds, room: int | None = None) -> int:
    """The most that was wanted within the cooldown, within bounds and what the machine has room for."""
    recent = (each.wanted for each in readings if each.at > now - bounds.cooldown_s)
    wanted = min(bounds.most, max(bounds.least, *recent, 0))
    return wanted if room is None else min(wanted, room)


async def follow(cluster: Cluster, scaler: Autoscaler, tell: Callable[[str], None]) -> None:
    """For ever. Without an answer replicas stay as they are."""
    now = asyncio.get_running_loop().time
    readings = deque([Reading(now(), cluster.num_replicas(scaler.workload))])
    async with httpx.AsyncClient(trust_env=False, timeout=_LIMIT_S) as client:
        while True:
            wanted = await _read(client, cluster, scaler)
            if wanted is not None:
                readings.append(Reading(now(), wanted))
                number = replicas_for(readings, now(), scaler.bounds, cluster.room_for(scaler.workload))
                if number != (before := cluster.num_replicas(scaler.workload)):
                    tell(f"{scaler.workload}: {before} -> {number} replicas, {wanted} wanted")
                    await cluster.scale(scaler.workload, number)
            while readings and readings[0].at <= now() - scaler.bounds.cooldown_s:
                readings.popleft()
            await asyncio.sleep(scaler.bounds.polling_s)


async def _read(client: httpx.AsyncClient, cluster: Cluster, scaler: Autoscaler) -> int | None:
    """None: nobody answers, or not with a number."""
    parts = urlsplit(scaler.url)
    addresses = cluster.services.names().get(parts.hostname or "", ())
    try:
        reply = await client.get(f"http://{addresses[0]}:{parts.port or 80}{parts.path}")
        shown: dict[str, Any] = reply.raise_for_status().json()
        return math.ceil(shown[scaler.field])
    except (httpx.HTTPError, IndexError, ValueError, KeyError, TypeError):
        return None
