"""How full the server is: the same for every tenant, and nothing of any of them."""

import httpx
import pytest

from openrl.errors import Unavailable
from openrl.research.server_load import Load as ToldLoad
from openrl.research.server_load import ServerLoad
from openrl.store.cluster import Load, Pause, SchedulerStatus, WorkerStatus
from tests.gateway.gateway_server import KEYS, MODEL, GatewayServer


def test_the_load_is_the_installations_and_names_nobody(
    server: GatewayServer, http: httpx.Client, bob_http: httpx.Client
):
    worker = WorkerStatus("w", "default", "both", (MODEL.name,), "working", 3, 7)
    pauses = {"alice": Pause("paused_rate_limit", "used up")}
    status = SchedulerStatus((MODEL.name,), pauses, 1, (worker,), Load(0.62, 4.5))
    server.call(server.store.cluster.publish_status(status))
    for client in (http, bob_http):
        assert client.get("load").json() == {"device_duty": 0.62, "queue_wait_s": 4.5}
    stranger = httpx.get(f"{server.url}/api/v1/load", timeout=60)
    assert (stranger.status_code, stranger.json()["code"]) == (401, "unauthorized")


def test_nobody_knows_the_duty_while_no_worker_has_told(http: httpx.Client, bob_http: httpx.Client):
    for client in (http, bob_http):
        assert client.get("load").json() == {"device_duty": None, "queue_wait_s": 0.0}


async def test_a_study_reads_it(server: GatewayServer):
    server.call(server.store.cluster.publish_status(SchedulerStatus(load=Load(0.62, 4.5))))
    for key in KEYS.values():
        assert await ServerLoad(server.url, key).load() == ToldLoad(0.62, 4.5)
    with pytest.raises(Unavailable, match="401"):
        await ServerLoad(server.url, "tml-nobody").load()
    with pytest.raises(Unavailable, match="404"):
        await ServerLoad(f"{server.url}/elsewhere", "tml-nobody").load()
    with pytest.raises(Unavailable, match="cannot be read"):
        await ServerLoad("http://127.0.0.1:1", "tml-nobody").load()
