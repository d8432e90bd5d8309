"""A running gateway, SDK clients and plain HTTP clients of two tenants."""

import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker

from openrl.config import GatewayConfig
from tests.gateway.gateway_server import KEYS, Clock, GatewayServer
from tests.gateway.raw_client import Owned, create_owned


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5, max_body_bytes=2**20))
    running.start()
    yield running
    running.stop()


def sdk_client(server: GatewayServer, tenant: str) -> Iterator[tinker.ServiceClient]:
    """The SDK leaves its sockets to the garbage collector, which complains of each: collect them here."""
    with tinker.ServiceClient(base_url=server.url, api_key=KEYS[tenant]) as client:
        yield client
    del client
    gc.collect()


@pytest.fixture
def alice(server: GatewayServer) -> Iterator[tinker.ServiceClient]:
    yield from sdk_client(server, "alice")


@pytest.fixture
def bob(server: GatewayServer) -> Iterator[tinker.ServiceClient]:
    yield from sdk_client(server, "bob")


@pytest.fixture
def rest(server: GatewayServer) -> Iterator[tinker.RestClient]:
    """The SDK's resource client as alice."""
    yield tinker.RestClient(base_url=server.url, api_key=KEYS["alice"])
    gc.collect()


@pytest.fixture
def http(server: GatewayServer) -> Iterator[httpx.Client]:
    """Plain HTTP as alice."""
    with _client(server, "alice") as client:
        yield client


@pytest.fixture
def bob_http(server: GatewayServer) -> Iterator[httpx.Client]:
    """Plain HTTP as bob."""
    with _client(server, "bob") as client:
        yield client


@pytest.fixture
def owned(http: httpx.Client) -> Owned:
    """One of everything, alice's, in the default project; its run has used the numbers 1 and 2."""
    return create_owned(http)


@pytest.fixture
def clock() -> Clock:
    """For servers that are made with it."""
    return Clock()


def _client(server: GatewayServer, tenant: str) -> httpx.Client:
    return httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEYS[tenant]}, timeout=60)
