"""Tokens whose time the server sees running out before the client does."""

import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker

from openrl.config import GatewayConfig
from openrl.errors import InvalidToken
from openrl.gateway.tokens import make_token, open_token
from openrl.store.identities import Identity
from tests.gateway.gateway_server import KEYS, Clock, GatewayServer
from tests.gateway.raw_client import create_owned


@pytest.fixture
def token_server(tmp_path: Path, clock: Clock) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5, jwt_auth=True), clock)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def rest(token_server: GatewayServer) -> Iterator[tinker.RestClient]:
    """The SDK leaves its sockets to the garbage collector: collect them before they reach another test."""
    yield tinker.RestClient(base_url=token_server.url, api_key=KEYS["alice"])
    gc.collect()


@pytest.mark.sdk("RestClient.list_sessions")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sdk_exchanges_again_when_its_token_is_refused(
    rest: tinker.RestClient, token_server: GatewayServer, clock: Clock
):
    assert rest.list_sessions().result().sessions == []
    clock.ahead_s = 7200.0
    assert rest.list_sessions().result().sessions == []


def test_a_token_is_as_good_as_its_key_and_sees_one_tenant(token_server: GatewayServer):
    clients: dict[str, httpx.Client] = {}
    for tenant, key in KEYS.items():
        clients[tenant] = httpx.Client(base_url=f"{token_server.url}/api/v1", timeout=10)
        token = clients[tenant].post("auth/token", headers={"X-API-Key": key}, json={}).json()["jwt"]
        clients[tenant].headers["X-API-Key"] = token
    owned = create_owned(clients["alice"])
    assert clients["alice"].get(f"training_runs/{owned.run_id}").status_code == 200
    assert clients["bob"].get(f"training_runs/{owned.run_id}").status_code == 404
    for client in clients.values():
        client.close()


def test_a_token_opens_with_its_own_key_in_its_own_time():
    alice = Identity("alice", "", "admin", None, "hash")
    token = make_token(alice, "hash", b"k" * 32, now=1000.0, lifetime_s=60.0)
    assert open_token(token, b"k" * 32, now=1059.9).key_hash == "hash"
    for key, now in ((b"k" * 32, 1060.0), (b"x" * 32, 1000.0)):
        with pytest.raises(InvalidToken):
            open_token(token, key, now)
