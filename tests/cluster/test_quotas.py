"""Quotas hold where gateways, schedulers and workers are processes of their own, and whoever leads."""

import pytest
import tinker

from tests.contracts.conftest import http_client
from tests.contracts.loops import new_run, train
from tests.contracts.raw_api import RawApi
from tests.live_cluster import LiveCluster
from tests.live_server import openrl


def quotas(cluster: LiveCluster, *arguments: str) -> None:
    done = openrl("admin", "quotas", *arguments, settings=cluster.settings)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_paused_tenant_waits_under_the_next_leader_too_and_the_other_does_not(
    cluster: LiveCluster, alice: tinker.ServiceClient
):
    quotas(cluster, "set", "other", "--gpu-seconds-month", "0")
    leader = cluster.leader()
    with http_client(cluster.urls[1], cluster.keys[1]) as http:
        raw = RawApi(http)
        held, told = raw.held_sample()
        assert told["queue_state"] == "paused_rate_limit"
        assert "quota gpu_seconds_month of this tenant:" in told["queue_state_reason"]
        run = new_run(alice)
        first = train(run, 1)
        assert cluster.stop_one("scheduler", leader) == 0
        assert len(first + train(run, 1, first=1)) == 2
        assert cluster.leader() != leader
        polled = raw.poll(held)
        assert (polled.status_code, polled.json()["queue_state"]) == (408, "paused_rate_limit")
        quotas(cluster, "clear", "other")
        assert "error" not in raw.finished(held).text
    cluster.start("scheduler", leader)
