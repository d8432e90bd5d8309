"""What an attempt used, as a study reads it from the real server: its own project, its own tenant."""

import asyncio
import time

import pytest
import tinker

from openrl.errors import Unavailable
from openrl.research.meter import ServerMeter
from tests.contracts.loops import new_run, train
from tests.live_server import LiveServer


def test_an_attempt_is_charged_what_its_project_used(server: LiveServer):
    first, second = "metered-0001", "metered-0002"
    for key, project, num_steps in ((server.key, first, 2), (server.other_key, first, 2), (server.key, second, 1)):
        with tinker.ServiceClient(base_url=server.url, api_key=key, project_id=project) as service:
            train(new_run(service), num_steps)
    since = time.time() - 60
    names = {"metered-0001", "metered-0002", "nobody"}
    found = asyncio.run(ServerMeter(server.url, server.key).usage(names, since))
    theirs = asyncio.run(ServerMeter(server.url, server.other_key).usage({"metered-0002"}, since))
    assert set(found) == {"metered-0001", "metered-0002"}
    assert (found["metered-0001"].tokens, found["metered-0002"].tokens) == (27, 12)  # 4 to 6 targets in each datum
    assert all(each.gpu_seconds > 0 for each in found.values())
    assert theirs == {}


async def test_a_server_that_is_not_there_is_no_disaster():
    with pytest.raises(Unavailable, match="usage of the study cannot be read"):
        await ServerMeter("http://127.0.0.1:9", "tml-nobody").usage({"x"}, time.time())
