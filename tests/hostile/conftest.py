"""One mistreated server for a file of tests, clients of both tenants."""

from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.raw_client import Owned, create_owned
from tests.gateway.refusals import Refusals
from tests.hostile.hostile_server import HostileServer, start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    running = start(tmp_path_factory.mktemp("hostile"), long_poll_s=0.2)
    yield running
    running.stop()
    running.check_log()


@pytest.fixture(scope="module")
def alice(server: HostileServer) -> Iterator[httpx.Client]:
    with server.client("alice") as client:
        yield client


@pytest.fixture(scope="module")
def bob(server: HostileServer) -> Iterator[httpx.Client]:
    with server.client("bob") as client:
        yield client


@pytest.fixture(scope="module")
def owned(alice: httpx.Client) -> Owned:
    return create_owned(alice)


@pytest.fixture(scope="module")
def refusals(alice: httpx.Client) -> Refusals:
    return Refusals(alice)
