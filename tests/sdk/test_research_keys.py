"""What an agent wrote reaches the real server with a key of its attempt's project, which ends with the attempt."""

import asyncio

import httpx
import pytest

from openrl.errors import InvalidRequest
from openrl.research.keys import ProjectKeys
from tests.live_server import LiveServer


def sessions(server: LiveServer, key: str) -> httpx.Response:
    return httpx.get(f"{server.url}/api/v1/sessions", headers={"X-API-Key": key})


def test_a_key_is_its_projects_and_its_tenants_and_ends_with_the_attempt(server: LiveServer):
    async def use(key: str, project: str) -> tuple[str, int, int]:
        async with ProjectKeys(server.url, key, 60.0).key(project) as made:
            body = {"tags": [], "sdk_version": "0.38.0", "project_id": "another-project"}
            headers = {"X-API-Key": made}
            refused = httpx.post(f"{server.url}/api/v1/create_session", json=body, headers=headers)
            return made, sessions(server, made).status_code, refused.status_code

    mine, allowed, refused = asyncio.run(use(server.key, "keyed-0001"))
    theirs, _, _ = asyncio.run(use(server.other_key, "keyed-0001"))
    assert (allowed, refused) == (200, 403)
    assert mine != theirs
    assert [sessions(server, each).status_code for each in (mine, theirs)] == [401, 401]


def test_a_key_that_is_no_admins_makes_none(server: LiveServer):
    async def nest() -> None:
        admins = ProjectKeys(server.url, server.key, 60.0)
        async with admins.key("keyed-0002") as made, ProjectKeys(server.url, made, 60.0).key("keyed-0003"):
            pass

    with pytest.raises(InvalidRequest, match="an admin's TINKER_API_KEY"):
        asyncio.run(nest())
