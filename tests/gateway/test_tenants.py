"""What belongs to one tenant does not exist for another, on every endpoint."""

from dataclasses import asdict, replace

import httpx

from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import Datum, ForwardBackwardInput
from tests.gateway.gateway_server import MODEL, GatewayServer
from tests.gateway.raw_client import Owned, datum
from tests.gateway.valid_calls import owned_calls

NOBODYS = "00000000-0000-4000-8000-000000000000"


def anonymous(text: str, owned: Owned) -> str:
    """An answer without the ids that it repeats."""
    for name in (owned.session_id, owned.request_id, owned.user_id, owned.key_id, owned.share_id):
        text = text.replace(name, "?")
    return text


def test_another_tenants_things_are_not_found_anywhere(owned: Owned, bob_http: httpx.Client, server: GatewayServer):
    missing = replace(
        owned, **{name: value.replace(owned.session_id, NOBODYS) for name, value in asdict(owned).items()}
    )
    missing = replace(missing, request_id=NOBODYS, user_id=NOBODYS, key_id="0" * 12, share_id="0" * 12)
    num_requests = len(server.store._requests)
    for theirs, nobodys in zip(owned_calls(owned), owned_calls(missing), strict=True):
        answers = [bob_http.request(method, path, json=body) for method, path, body in (theirs, nobodys)]
        assert [answer.status_code for answer in answers] == [404, 404], (theirs, answers[0].text)
        shown = [anonymous(answer.text, each) for answer, each in zip(answers, (owned, missing), strict=True)]
        assert shown[0] == shown[1]
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 50, (datum([1, 2]),), "cross_entropy"))
    assert bob_http.post("forward_backward", content=body).status_code == 404
    assert len(server.store._requests) == num_requests


def test_refused_bodies_do_not_tell_whether_a_run_exists(owned: Owned, bob_http: httpx.Client):
    bad = Datum(datum([1, 2]).tokens, {})
    for run_id in (owned.run_id, "no-such-run"):
        body = encode_forward_backward(ForwardBackwardInput(run_id, 50, (bad,), "cross_entropy"))
        assert bob_http.post("forward_backward", content=body).status_code == 404


def test_own_session_with_anothers_checkpoint_is_not_found(owned: Owned, bob_http: httpx.Client):
    session_id = bob_http.post("create_session", json={}).json()["session_id"]
    load = {"session_id": session_id, "model_seq_id": 0, "path": owned.weights_path}
    assert bob_http.post("load_weights", json=load).status_code == 404
    sampling = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": owned.sampler_path}
    assert bob_http.post("create_sampling_session", json=sampling).status_code == 404


def test_listings_hold_only_the_tenants_own(owned: Owned, http: httpx.Client, bob_http: httpx.Client):
    assert bob_http.get("training_runs").json()["training_runs"] == []
    assert bob_http.get("checkpoints").json() == {
        "checkpoints": [],
        "cursor": {"offset": 0, "limit": 100, "total_count": 0},
    }
    assert bob_http.get("sessions").json() == {"sessions": []}
    assert [run["training_run_id"] for run in http.get("training_runs").json()["training_runs"]] == [owned.run_id]


def test_a_published_checkpoint_is_readable_by_all_and_writable_by_its_owner_only(
    owned: Owned, http: httpx.Client, bob_http: httpx.Client
):
    at = f"training_runs/{owned.run_id}/checkpoints/sampler_weights/s"
    assert http.post(f"{at}/publish").status_code == 204
    assert http.post(f"{at}/publish").status_code == 204
    info = bob_http.post("weights_info", json={"tinker_path": owned.sampler_path}).json()
    assert (info["base_model"], info["lora_rank"]) == (MODEL.name, 8)
    session_id = bob_http.post("create_session", json={}).json()["session_id"]
    sampling = {"session_id": session_id, "sampling_session_seq_id": 0, "model_path": owned.sampler_path}
    assert bob_http.post("create_sampling_session", json=sampling).status_code == 200
    assert bob_http.delete(at).status_code == 404
    assert bob_http.put(f"{at}/ttl", json={"ttl_seconds": None}).status_code == 404
    assert bob_http.delete(f"{at}/publish").status_code == 404
    assert http.delete(f"{at}/publish").status_code == 204
    assert bob_http.post("weights_info", json={"tinker_path": owned.sampler_path}).status_code == 404


def test_an_access_token_lends_another_tenants_checkpoint(owned: Owned, bob_http: httpx.Client):
    session_id = bob_http.post("create_session", json={}).json()["session_id"]
    load = {"session_id": session_id, "model_seq_id": 0, "path": owned.weights_path}
    assert bob_http.post("load_weights", json={**load, "weights_access_token": "tml-alice"}).status_code == 200
    assert bob_http.post("load_weights", json={**load, "weights_access_token": "tml-nobody"}).status_code == 401
