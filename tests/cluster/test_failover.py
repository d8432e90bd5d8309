"""Losing any process of a cluster costs clients time, and nothing else (contracts 38 and 41)."""

import signal
import time

import pytest
import tinker

from tests.cluster.load import check_disturbed
from tests.contracts.loops import TEXT, connect, new_run, sample, snapshot, train
from tests.live_cluster import LiveCluster, Role


def test_what_one_gateway_took_the_other_knows(cluster: LiveCluster, alice: tinker.ServiceClient):
    run = new_run(alice)
    train(run, 2)
    path = run.save_weights_for_sampler("shared").result().path
    here = sample(snapshot(run), TEXT)
    elsewhere = connect(cluster.urls[1], cluster.keys[0])
    assert sample(elsewhere.create_sampling_client(model_path=path).result(), TEXT) == here
    stranger = connect(cluster.urls[1], cluster.keys[1])
    with pytest.raises(tinker.NotFoundError):
        stranger.create_sampling_client(model_path=path).result()


def test_a_killed_leader_is_followed_by_the_standby(
    cluster: LiveCluster, alice: tinker.ServiceClient, bob: tinker.ServiceClient
):
    leader = cluster.leader()
    check_disturbed(alice, bob, cluster.data_dir, lambda: cluster.kill("scheduler", leader))
    assert cluster.leader() != leader
    cluster.start("scheduler", leader)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_what_a_killed_worker_had_the_other_goes_on_with(
    cluster: LiveCluster, alice: tinker.ServiceClient, bob: tinker.ServiceClient, number: int
):
    check_disturbed(alice, bob, cluster.data_dir, lambda: cluster.kill("worker", number))
    cluster.start("worker", number)
    cluster.wait_for_workers(2)


@pytest.mark.slow
def test_a_leader_that_stood_still_changes_nothing_when_it_goes_on(
    cluster: LiveCluster, alice: tinker.ServiceClient, bob: tinker.ServiceClient
):
    leader = cluster.leader()

    def stand_still() -> None:
        cluster.signal("scheduler", leader, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while cluster.leader() == leader and time.monotonic() < deadline:
            time.sleep(0.2)
        cluster.wait_for_workers(2)
        cluster.signal("scheduler", leader, signal.SIGCONT)

    check_disturbed(alice, bob, cluster.data_dir, stand_still)
    assert cluster.leader() != leader
    assert cluster.processes["scheduler"][leader].poll() is None
    assert "standing by" in cluster.log("scheduler", leader).read_text()
    # It stands by: the lead comes back to it.
    now = cluster.leader()
    check_disturbed(alice, bob, cluster.data_dir, lambda: cluster.kill("scheduler", now))
    assert cluster.leader() == leader
    cluster.start("scheduler", now)


@pytest.mark.slow
def test_a_worker_that_stood_still_is_given_up_and_comes_back_as_another(
    cluster: LiveCluster, alice: tinker.ServiceClient, bob: tinker.ServiceClient
):
    def stand_still() -> None:
        cluster.signal("worker", 0, signal.SIGSTOP)
        cluster.wait_for_workers(1)
        cluster.signal("worker", 0, signal.SIGCONT)

    check_disturbed(alice, bob, cluster.data_dir, stand_still)
    cluster.wait_for_workers(2)
    assert cluster.processes["worker"][0].poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("role", ["gateway", "scheduler", "worker"])
def test_a_process_that_is_told_to_end_drains(
    cluster: LiveCluster, alice: tinker.ServiceClient, bob: tinker.ServiceClient, role: Role
):
    number = cluster.leader() if role == "scheduler" else 0

    def restart() -> None:
        assert cluster.stop_one(role, number) == 0
        cluster.start(role, number)

    check_disturbed(alice, bob, cluster.data_dir, restart)
    cluster.wait_until_ready()
    cluster.wait_for_workers(2)
