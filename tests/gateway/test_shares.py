"""Shares: a token that lends one checkpoint to whoever holds it, until it ends."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from openrl.config import GatewayConfig
from tests.gateway.gateway_server import Clock, GatewayServer
from tests.gateway.raw_client import Owned, post, result


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5), clock)
    running.start()
    yield running
    running.stop()


def at(owned: Owned, checkpoint: str) -> str:
    return f"training_runs/{owned.run_id}/checkpoints/{checkpoint}"


def lend(http: httpx.Client, owned: Owned, checkpoint: str) -> dict[str, str]:
    return post(http, f"{at(owned, checkpoint)}/shares", {"ttl_seconds": 600, "label": "to bob"})


def header(token: str) -> dict[str, str]:
    return {"X-Tinker-Weights-Access-Token": token}


def test_its_holder_loads_samples_downloads_and_copies(owned: Owned, http: httpx.Client, bob_http: httpx.Client):
    weights, sampler = (lend(http, owned, each)["token"] for each in ("weights/w", "sampler_weights/s"))
    session_id = post(bob_http, "create_session", {})["session_id"]
    load = {"session_id": session_id, "model_seq_id": 0, "path": owned.weights_path, "weights_access_token": weights}
    assert "error" not in result(bob_http, "load_weights", load)
    sampling = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": owned.sampler_path}
    assert bob_http.post("create_sampling_session", json=sampling, headers=header(sampler)).status_code == 200
    sampling["sampling_session_seq_id"] = 1
    assert (
        bob_http.post("create_sampling_session", json={**sampling, "weights_access_token": sampler}).status_code == 200
    )
    copy = {"source_path": owned.weights_path, "destination_project_id": "p"}
    assert bob_http.post("copy_weights", json=copy, headers=header(weights)).status_code == 200
    info = {"tinker_path": owned.sampler_path}
    assert bob_http.post("weights_info", json=info, headers=header(sampler)).status_code == 200
    link = bob_http.get(f"{at(owned, 'sampler_weights/s')}/archive", headers=header(sampler))
    assert link.status_code == 302
    assert httpx.get(link.headers["location"]).status_code == 200


def test_it_lends_one_checkpoint_and_only_to_read(owned: Owned, http: httpx.Client, bob_http: httpx.Client):
    token = lend(http, owned, "weights/w")["token"]
    info = {"tinker_path": owned.sampler_path}
    assert bob_http.post("weights_info", json=info, headers=header(token)).status_code == 404
    for method, path, body in (
        ("DELETE", at(owned, "weights/w"), None),
        ("POST", f"{at(owned, 'weights/w')}/publish", None),
        ("PUT", f"{at(owned, 'weights/w')}/ttl", {"ttl_seconds": 3600}),
        ("POST", f"{at(owned, 'weights/w')}/shares", {"ttl_seconds": 60}),
        ("GET", f"training_runs/{owned.run_id}", None),
    ):
        assert bob_http.request(method, path, json=body, headers=header(token)).status_code == 404
    assert bob_http.get("sessions", headers={"X-API-Key": token}).status_code == 401


def test_it_ends_at_once_when_it_is_revoked_with_its_links(owned: Owned, http: httpx.Client, bob_http: httpx.Client):
    share = lend(http, owned, "sampler_weights/s")
    info, token = {"tinker_path": owned.sampler_path}, header(share["token"])
    link = bob_http.get(f"{at(owned, 'sampler_weights/s')}/archive", headers=token).headers["location"]
    assert bob_http.delete(f"shares/{share['share_id']}").status_code == 404
    assert bob_http.post("weights_info", json=info, headers=token).status_code == 200
    assert http.delete(f"shares/{share['share_id']}").status_code == 204
    refused = bob_http.post("weights_info", json=info, headers=token)
    assert refused.status_code == 401
    assert "weights access token is refused" in refused.json()["detail"]
    assert httpx.get(link).status_code == 404
    assert http.get("shares").json()["shares"][0]["revoked_at"]


def test_it_ends_when_its_time_is_over_and_with_its_checkpoint(
    owned: Owned, http: httpx.Client, bob_http: httpx.Client, clock: Clock
):
    info = {"tinker_path": owned.sampler_path}
    token = header(lend(http, owned, "sampler_weights/s")["token"])
    clock.ahead_s = 601.0
    assert bob_http.post("weights_info", json=info, headers=token).status_code == 401
    token = header(lend(http, owned, "sampler_weights/s")["token"])
    assert http.delete(at(owned, "sampler_weights/s")).status_code == 204
    assert bob_http.post("weights_info", json=info, headers=token).status_code == 404


def test_only_its_owner_lends_a_checkpoint(owned: Owned, http: httpx.Client, bob_http: httpx.Client):
    assert http.post(f"{at(owned, 'weights/w')}/publish").status_code == 204
    assert bob_http.post(f"{at(owned, 'weights/w')}/shares", json={"ttl_seconds": 60}).status_code == 404
    assert http.post(f"{at(owned, 'weights/none')}/shares", json={"ttl_seconds": 60}).status_code == 404
    assert bob_http.get("shares").json() == {"shares": []}


def test_the_audit_log_tells_of_it_and_listings_never_show_tokens(owned: Owned, http: httpx.Client):
    share = lend(http, owned, "weights/w")
    http.delete(f"shares/{share['share_id']}")
    events = [entry for entry in http.get("audit").json()["entries"] if entry["event"].startswith("share_")]
    assert [entry["event"] for entry in events][-2:] == ["share_create", "share_revoke"]
    assert events[-1]["tinker_path"] == owned.weights_path
    assert events[-1]["event_details"]["share_id"] == share["share_id"]
    assert share["token"] not in http.get("shares").text
