"""Clients of two tenants on the shared server."""

import gc
from collections.abc import Iterator

import httpx
import pytest
import tinker

from tests.contracts.loops import connect
from tests.contracts.raw_api import RawApi
from tests.live_server import LiveServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDK leaves its sockets to the garbage collector, which complains of each."""
    for item in items:
        if "tests/contracts/" in item.nodeid:
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


@pytest.fixture
def rest(server: LiveServer) -> tinker.RestClient:
    """The SDK's client of saved things, as alice."""
    return tinker.RestClient(base_url=server.url, api_key=server.key)


@pytest.fixture
def bob_rest(server: LiveServer) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=server.other_key)


@pytest.fixture
def raw(server: LiveServer) -> Iterator[RawApi]:
    """The API by plain HTTP, as alice."""
    with http_client(server.url, server.key) as http:
        yield RawApi(http)


@pytest.fixture
def bob_raw(server: LiveServer) -> Iterator[RawApi]:
    with http_client(server.url, server.other_key) as http:
        yield RawApi(http)


def http_client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{url}/api/v1/", headers={"X-API-Key": key}, timeout=60)
