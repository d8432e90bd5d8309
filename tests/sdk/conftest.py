"""Clients of two tenants on the shared server."""

import gc
from collections.abc import Iterator

import pytest
import tinker

from tests.contracts.loops import connect
from tests.live_server import LiveServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/sdk/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True, scope="package")
def no_sockets_left_to_later_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="package")
def alice(server: LiveServer, no_sockets_left_to_later_tests: None) -> Iterator[tinker.ServiceClient]:
    with connect(server.url, server.key) as service:
        yield service


@pytest.fixture(scope="package")
def bob(server: LiveServer, no_sockets_left_to_later_tests: None) -> Iterator[tinker.ServiceClient]:
    """The other tenant."""
    with connect(server.url, server.other_key) as service:
        yield service
