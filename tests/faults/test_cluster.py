"""Troubles of an installation of many processes: the database goes, processes stand still, all parts are replaced."""

import signal
import time
from pathlib import Path

import pytest
from bench.crash_cluster import ClusterInstallation
from bench.crash_serve import CONFIG, ServeInstallation

from tests.faults.loads import TROUBLE_S, expect_only_delay
from tests.live_cluster import ROLES

QUICK = (
    CONFIG
    + """
[gateway]
drain_delay_s = 1
"""
).replace("[scheduler]", "[scheduler]\nlease_s = 4\nworker_silence_s = 5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def cluster(tiny_model_dir: Path, tmp_path: Path) -> ClusterInstallation:
    return ClusterInstallation(tiny_model_dir, tmp_path / "troubled", QUICK)


@pytest.fixture
def twin(tiny_model_dir: Path, tmp_path: Path) -> ServeInstallation:
    return ServeInstallation(tiny_model_dir, tmp_path / "twin")


# 38, 39
def test_the_database_restarts_under_load(cluster: ClusterInstallation, twin: ServeInstallation):
    def restart(installation: ClusterInstallation) -> None:
        installation.postgres.restart()

    def lose_power(installation: ClusterInstallation) -> None:
        installation.postgres.kill()
        time.sleep(TROUBLE_S)
        installation.postgres.start()

    expect_only_delay(cluster, twin, restart, lose_power)


# 38
def test_processes_that_stand_still_are_replaced_and_do_no_harm_when_they_go_on(
    cluster: ClusterInstallation, twin: ServeInstallation
):
    def hang_worker(installation: ClusterInstallation) -> None:
        installation.cluster.signal("worker", 0, signal.SIGSTOP)
        time.sleep(2 * TROUBLE_S)
        installation.cluster.signal("worker", 0, signal.SIGCONT)

    def hang_leader(installation: ClusterInstallation) -> None:
        leader = installation.cluster.leader()
        installation.cluster.signal("scheduler", leader, signal.SIGSTOP)
        time.sleep(TROUBLE_S)
        assert installation.cluster.leader() != leader
        time.sleep(TROUBLE_S)
        installation.cluster.signal("scheduler", leader, signal.SIGCONT)

    expect_only_delay(cluster, twin, hang_worker, hang_leader)


# 41
def test_every_process_is_replaced_in_turn(cluster: ClusterInstallation, twin: ServeInstallation):
    def replace_all(installation: ClusterInstallation) -> None:
        for role in ROLES:
            for number in (0, 1):
                assert installation.cluster.stop_one(role, number) == 0
                installation.cluster.start(role, number)
                installation.wait_ready()

    expect_only_delay(cluster, twin, replace_all)
