"""What each role may do: one table of routes, tried with two users of one tenant beside another tenant."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import tinker

from openrl.gateway.app import all_routes
from openrl.gateway.auth import hash_key
from openrl.store.identities import OPERATOR, ApiKeyRow, Role, UserRow
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import Owned, post
from tests.gateway.valid_calls import free_calls, owned_calls, route_of

# Beside GET: what asks without changing anything, and what everybody may do with the own credential.
READING = {
    "/auth/apikey/me", "/auth/token", "/client/config", "/client/dynamic_config", "/get_info", "/retrieve_future",
    "/sessions/search", "/telemetry", "/weights_info",
}  # fmt: skip
ADMINISTRATION = {
    "/admin/users", "/admin/users/{user_id}", "/admin/keys", "/admin/keys/{key_id}", "/admin/keys/{key_id}/rotate",
    "/audit",
}  # fmt: skip
Connect = Callable[[Role], httpx.Client]


@pytest.fixture
def connect(server: GatewayServer) -> Iterator[Connect]:
    """Plain HTTP as a user of alice with this role."""
    with ExitStack() as clients:

        def as_role(role: Role) -> httpx.Client:
            user = UserRow(f"u-{role}", "alice", role, 0.0, f"{role}@alice.example")
            server.call(server.store.identities.add_user(user, OPERATOR))
            key = ApiKeyRow(hash_key(f"tml-{role}"), "alice", role, 0.0, role=role, user_id=user.user_id)
            server.call(server.store.identities.add_api_key(key, OPERATOR))
            headers = {"X-API-Key": f"tml-{role}"}
            return clients.enter_context(httpx.Client(base_url=f"{server.url}/api/v1", headers=headers, timeout=60))

        yield as_role


def test_every_route_says_what_a_role_must_allow():
    for _, route in all_routes():
        if route.path in ADMINISTRATION:
            wanted = "admin"
        else:
            wanted = "read" if route.method == "GET" or route.path in READING else "write"
        assert route.access == wanted, (route.method, route.path)


def rows_of(server: GatewayServer) -> dict[str, Any]:
    """All rows, but for when keys were used."""
    return {
        name: dict(value) if isinstance(value, dict) else list(value)
        for name, value in vars(server.store).items()
        if isinstance(value, dict | list) and name not in ("_keys", "_listeners")
    }


def test_a_reader_looks_at_everything_and_changes_nothing(owned: Owned, server: GatewayServer, connect: Connect):
    reader = connect("reader")
    before = rows_of(server)
    for call in [*owned_calls(owned), *free_calls()]:
        method, path, body = call
        answer = reader.request(method, path, json=body)
        if route_of(call)[0].access == "read":
            assert answer.status_code not in (401, 403), (call, answer.text)
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), call
            assert answer.json()["value"] == "reader"
            assert answer.json()["docs"].endswith("#forbidden")
    assert rows_of(server) == before
    assert reader.get("training_runs").json()["training_runs"][0]["training_run_id"] == owned.run_id
    assert reader.delete("auth/apikey/me").status_code == 204


def test_a_member_works_on_its_tenants_things_and_is_no_admin(owned: Owned, connect: Connect, bob_http: httpx.Client):
    member = connect("member")
    for call in [*owned_calls(owned), *free_calls()]:
        is_admins = route_of(call)[0].access == "admin"
        answer = member.request(call[0], call[1], json=call[2])
        assert (answer.status_code == 403) == is_admins, (call, answer.text)
    assert member.get("audit").status_code == 403
    mine = create_session(member)
    assert member.get(f"sessions/{mine}").status_code == 200
    assert bob_http.get(f"sessions/{mine}").status_code == 404


def create_session(http: httpx.Client) -> str:
    return post(http, "create_session", {})["session_id"]


def test_two_users_of_a_tenant_share_what_it_owns(owned: Owned, connect: Connect):
    member, reader = connect("member"), connect("reader")
    session_id = create_session(member)
    assert reader.get(f"sessions/{session_id}").status_code == 200
    assert session_id in reader.get("sessions").json()["sessions"]


def test_an_admins_user_may_do_everything_and_is_named_in_the_audit_log(connect: Connect, bob_http: httpx.Client):
    admin = connect("admin")
    user_id = post(admin, "admin/users", {"email": "New@Alice.example", "role": "reader"})["user_id"]
    post(admin, "admin/keys", {"user_id": user_id, "role": "reader"})
    entries = admin.get("audit").json()["entries"][-2:]
    assert [entry["event"] for entry in entries] == ["user_create", "api_key_create"]
    for entry in entries:
        assert entry["event_details"]["actor"] == "tml:user:u-admin"
        assert entry["event_details"]["actor_key_id"] == hash_key("tml-admin")[:12]
    assert [user["email"] for user in admin.get("admin/users").json()["users"]][-1] == "new@alice.example"
    assert bob_http.get("admin/users").json() == {"users": []}
    assert bob_http.get("audit").json()["entries"] == []
    bobs = bob_http.post("admin/keys", json={"user_id": user_id})
    assert bobs.status_code == 404


def test_a_role_that_is_taken_away_counts_at_once(server: GatewayServer, connect: Connect, http: httpx.Client):
    member = connect("member")
    create_session(member)
    http.patch("admin/users/u-member", json={"role": "reader"})
    assert member.post("create_session", json={}).status_code == 403
    assert member.get("sessions").status_code == 200
    http.patch("admin/users/u-member", json={"is_disabled": True})
    assert member.get("sessions").status_code == 401
    http.patch("admin/users/u-member", json={"is_disabled": False, "role": "member"})
    create_session(member)


@pytest.fixture
def reader_rest(server: GatewayServer, connect: Connect) -> Iterator[tinker.RestClient]:
    """The SDK leaves its sockets to the garbage collector: collect them before they reach another test."""
    connect("reader")
    yield tinker.RestClient(base_url=server.url, api_key="tml-reader")
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sdk_tells_a_reader_that_it_may_not(reader_rest: tinker.RestClient, owned: Owned):
    (run,) = reader_rest.list_training_runs().result().training_runs
    assert run.training_run_id == owned.run_id
    with pytest.raises(tinker.PermissionDeniedError, match="reader"):
        reader_rest.delete_checkpoint_from_tinker_path(owned.weights_path).result()
