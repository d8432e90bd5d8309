"""API keys over HTTP: made, rotated and revoked by admins, with an end, for users of two tenants."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openrl.config import GatewayConfig
from tests.gateway.gateway_server import KEYS, Clock, GatewayServer
from tests.gateway.raw_client import post


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5), clock)
    running.start()
    yield running
    running.stop()


def status(http: httpx.Client, key: str) -> int:
    return http.get("sessions", headers={"X-API-Key": key}).status_code


def test_a_new_key_is_shown_once_and_may_do_what_it_was_made_for(http: httpx.Client, bob_http: httpx.Client):
    made = post(http, "admin/keys", {"label": "laptop", "role": "reader"})
    assert made["key"].startswith("tml-")
    assert (made["role"], made["user_id"], made["project_id"], made["expires_at"]) == ("reader", None, None, None)
    listed = http.get("admin/keys").json()["keys"]
    assert [key["label"] for key in listed] == ["test", "laptop"]
    assert made["key"] not in http.get("admin/keys").text
    assert len(bob_http.get("admin/keys").json()["keys"]) == 1
    assert status(http, made["key"]) == 200
    refused = http.post("create_session", json={}, headers={"X-API-Key": made["key"]})
    assert refused.status_code == 403


def test_a_key_ends_when_it_was_said_to(http: httpx.Client, clock: Clock):
    key = post(http, "admin/keys", {"ttl_seconds": 60})["key"]
    assert status(http, key) == 200
    clock.ahead_s = 61.0
    assert status(http, key) == 401
    assert status(http, KEYS["alice"]) == 200


def test_a_rotated_key_and_its_replacement_overlap(http: httpx.Client, clock: Clock):
    old = post(http, "admin/keys", {"label": "ci", "role": "member"})
    new = post(http, f"admin/keys/{old['key_id']}/rotate", {"overlap_seconds": 100})
    assert (new["label"], new["role"], new["key"] != old["key"]) == ("ci", "member", True)
    assert [status(http, each["key"]) for each in (old, new)] == [200, 200]
    clock.ahead_s = 101.0
    assert [status(http, each["key"]) for each in (old, new)] == [401, 200]
    again = http.post(f"admin/keys/{old['key_id']}/rotate", json={})
    assert (again.status_code, again.json()["code"]) == (400, "wrong_kind")
    listed = {key["key_id"]: key for key in http.get("admin/keys").json()["keys"]}
    assert listed[old["key_id"]]["replaced_by"] == new["key_id"]


def test_a_revoked_key_is_refused_at_once(http: httpx.Client, bob_http: httpx.Client):
    made = post(http, "admin/keys", {})
    assert status(http, made["key"]) == 200
    assert bob_http.delete(f"admin/keys/{made['key_id']}").status_code == 404
    assert status(http, made["key"]) == 200
    assert http.delete(f"admin/keys/{made['key_id']}").status_code == 204
    assert status(http, made["key"]) == 401


def test_the_last_use_is_noted_to_a_minute(http: httpx.Client, clock: Clock):
    made = post(http, "admin/keys", {})

    def last_used() -> str | None:
        return next(key for key in http.get("admin/keys").json()["keys"] if key["key_id"] == made["key_id"])[
            "last_used_at"
        ]

    assert last_used() is None
    status(http, made["key"])
    first = last_used()
    assert first is not None
    clock.ahead_s = 30.0
    status(http, made["key"])
    assert last_used() == first
    clock.ahead_s = 61.0
    status(http, made["key"])
    assert last_used() != first


@pytest.mark.parametrize(
    "body",
    [
        {"role": "root"},
        {"role": "admin", "project_id": "p"},
        {"ttl_seconds": 1},
        {"project_id": "../x"},
        {"label": "a\nb"},
    ],
)
def test_what_a_key_cannot_be_is_refused(http: httpx.Client, body: dict[str, object]):
    assert http.post("admin/keys", json=body).status_code == 400


def test_a_users_key_is_no_more_than_the_user(http: httpx.Client):
    user_id = post(http, "admin/users", {"subject": "s", "role": "reader"})["user_id"]
    assert http.post("admin/keys", json={"user_id": user_id, "role": "member"}).status_code == 400
    key = post(http, "admin/keys", {"user_id": user_id, "role": "reader"})["key"]
    shown = http.get("auth/apikey/me", headers={"X-API-Key": key}).json()
    assert shown["details"] == {"org_details": {"name": "alice"}, "user_details": {"email": "alice"}}
    http.patch(f"admin/users/{user_id}", json={"is_disabled": True})
    assert status(http, key) == 401
