"""Autoscalers on one machine: which are followed, and how many replicas they lead to."""

import pytest
import yaml

from openrl.cluster.autoscaling import Bounds, Reading, autoscalers_of, replicas_for
from openrl.cluster.gpus import GpuPool
from openrl.cluster.manifests import read_manifests
from openrl.cluster.pod_spec import Container
from tests.kubernetes.chart import render_example

BOUNDS = Bounds(least=0, most=4, polling_s=15.0, cooldown_s=900.0)


def test_those_of_the_chart_are_followed_but_for_what_only_a_cluster_measures():
    manifests = read_manifests([yaml.safe_dump_all(render_example("everything"))])
    followed, others = autoscalers_of(manifests, "openrl")
    assert others == ["HorizontalPodAutoscaler/openrl-gateway"]  # by CPU
    url = "http://openrl-autoscale.openrl.svc:9090/autoscale"
    assert {each.workload: (each.url, each.field) for each in followed} == {
        "Deployment/openrl-pool-sample": (f"{url}/sample", "wanted_workers"),
        "Deployment/openrl-pool-train": (f"{url}/train", "wanted_workers"),
        "LeaderWorkerSet/openrl-pool-wide": (f"{url}/wide", "wanted_workers"),
    }
    assert {each.bounds for each in followed} == {BOUNDS}


@pytest.mark.parametrize(
    ("wanted", "now", "bounds", "room", "expected"),
    [
        ([(0, 1), (10, 3)], 10, BOUNDS, None, 3),  # more at once
        ([(0, 3), (10, 0)], 10, BOUNDS, None, 3),  # less only when it was not wanted for the cooldown
        ([(0, 3), (10, 1), (905, 0)], 905, BOUNDS, None, 1),
        ([(0, 3), (10, 1), (911, 0)], 911, BOUNDS, None, 0),  # to none
        ([(0, 9)], 0, BOUNDS, None, 4),  # within bounds
        ([(0, 0)], 1000, Bounds(1, 4, 15.0, 900.0), None, 1),
        ([(0, 3)], 0, BOUNDS, 2, 2),  # as many as there are GPUs for
    ],
)
def test_how_many(wanted: list[tuple[int, int]], now: int, bounds: Bounds, room: int | None, expected: int):
    readings = [Reading(float(at), number) for at, number in wanted]
    assert replicas_for(readings, float(now), bounds, room) == expected


def test_room_is_what_the_free_gpus_hold():
    two = Container.model_validate({"name": "a", "resources": {"limits": {"nvidia.com/gpu": 2}}})
    none = Container.model_validate({"name": "b"})
    pool = GpuPool((0, 1, 2, 3, 4))
    pool.take("pod-0/a", two)
    assert pool.room_for([two, none]) == 1
    assert pool.room_for([none]) is None
