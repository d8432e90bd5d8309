"""A cluster on PostgreSQL that notices losses soon, and clients of two tenants at different gateways."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.contracts.loops import connect
from tests.live_cluster import LiveCluster, start_cluster
from tests.postgres import PostgresServer, new_database

SETTINGS = {
    "OPENRL_SCHEDULER__LEASE_S": "4",
    "OPENRL_SCHEDULER__WORKER_SILENCE_S": "6",
    "OPENRL_SCHEDULER__MAX_REPLAY_S": "0.05",  # device seconds: runs come back from a snapshot and what follows it
    "OPENRL_RPC__SILENCE_S": "6",
    "OPENRL_GATEWAY__LONG_POLL_S": "2",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/cluster/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="package")
def cluster(
    tiny_model_dir: Path, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveCluster]:
    """Every test leaves it as it was: two of each process."""
    live = start_cluster(tiny_model_dir, tmp_path_factory.mktemp("cluster"), new_database(postgres), settings=SETTINGS)
    yield live
    live.stop()
    gc.collect()


@pytest.fixture(scope="package")
def alice(cluster: LiveCluster) -> Iterator[tinker.ServiceClient]:
    """At the first gateway."""
    with connect(cluster.urls[0], cluster.keys[0]) as service:
        yield service


@pytest.fixture(scope="package")
def bob(cluster: LiveCluster) -> Iterator[tinker.ServiceClient]:
    """The other tenant, at the other gateway."""
    with connect(cluster.urls[1], cluster.keys[1]) as service:
        yield service
