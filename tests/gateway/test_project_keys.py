"""A key that is bound to a project sees and makes only what belongs to that project's sessions."""

import gc
from collections.abc import Iterator
from dataclasses import asdict, replace

import httpx
import pytest
import tinker

from openrl.gateway.auth import hash_key
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from openrl.store.identities import OPERATOR, ApiKeyRow
from tests.gateway.gateway_server import MODEL, GatewayServer
from tests.gateway.raw_client import Owned, datum, post, sample_body
from tests.gateway.test_tenants import NOBODYS, anonymous
from tests.gateway.valid_calls import owned_calls, route_of

KEY = "tml-bound"


@pytest.fixture
def bound(server: GatewayServer) -> Iterator[httpx.Client]:
    """Plain HTTP as a member of alice, bound to project "apollo"."""
    key = ApiKeyRow(hash_key(KEY), "alice", "bound", 0.0, role="member", project_id="apollo")
    server.call(server.store.identities.add_api_key(key, OPERATOR))
    with httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEY}, timeout=60) as client:
        yield client


def work(http: httpx.Client, **session: str) -> tuple[str, str, str]:
    """A session with a run that has saved, and its checkpoint's address."""
    session_id = post(http, "create_session", session)["session_id"]
    model = {"session_id": session_id, "model_seq_id": 0, "base_model": MODEL.name, "lora_config": {"rank": 8}}
    run_id = post(http, "create_model", model)["model_id"]
    saving = post(http, "save_weights", {"model_id": run_id, "seq_id": 1, "path": "w"})
    post(http, "retrieve_future", {"request_id": saving["request_id"]})
    return session_id, run_id, f"training_runs/{run_id}/checkpoints/weights/w"


def test_things_of_other_projects_are_not_found_anywhere(owned: Owned, bound: httpx.Client, server: GatewayServer):
    gone = {name: value.replace(owned.session_id, NOBODYS) for name, value in asdict(owned).items()}
    missing = replace(owned, **{**gone, "request_id": NOBODYS, "share_id": "0" * 12})
    num_requests = len(server.store._requests)
    for theirs, nobodys in zip(owned_calls(owned), owned_calls(missing), strict=True):
        answers = [bound.request(method, path, json=body) for method, path, body in (theirs, nobodys)]
        wanted = 403 if route_of(theirs)[0].access == "admin" else 404
        assert [answer.status_code for answer in answers] == [wanted, wanted], (theirs, answers[0].text)
        shown = [anonymous(answer.text, each) for answer, each in zip(answers, (owned, missing), strict=True)]
        assert shown[0] == shown[1]
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 50, (datum([1, 2]),), "cross_entropy"))
    assert bound.post("forward_backward", content=body).status_code == 404
    assert len(server.store._requests) == num_requests


def test_what_others_have_just_used_is_not_remembered_for_it(owned: Owned, http: httpx.Client, bound: httpx.Client):
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 3, (datum([1, 2]),), "cross_entropy"))
    assert http.post("forward_backward", content=body).status_code == 200
    assert http.post("asample", json=sample_body(owned.sampler_id, 8)).status_code == 200
    assert bound.post("forward_backward", content=body).status_code == 404
    assert bound.post("asample", json=sample_body(owned.sampler_id, 8)).status_code == 404


def test_listings_hold_only_the_projects_own(owned: Owned, http: httpx.Client, bound: httpx.Client):
    session_id, run_id, _ = work(bound)
    assert bound.get("sessions").json() == {"sessions": [session_id]}
    assert [run["training_run_id"] for run in bound.get("training_runs").json()["training_runs"]] == [run_id]
    assert bound.get("training_runs?project_id=default").json()["training_runs"] == []
    assert len(bound.get("checkpoints").json()["checkpoints"]) == 1
    assert len(http.get("checkpoints").json()["checkpoints"]) == 3
    search = {"user_metadata": {}, "owner": {"type": "own"}, "limit": 10}
    assert [each["session_id"] for each in post(bound, "sessions/search", search)["sessions"]] == [session_id]
    assert bound.post("sessions/search", json={**search, "project_ids": ["default"]}).status_code == 404
    stored = bound.get("billing/usage/checkpoints/current").json()["data"]
    assert [(each["project_id"], each["checkpoint_count"]) for each in stored] == [("apollo", 1)]
    assert bound.get("shares").json() == {"shares": []}
    assert len(http.get("shares").json()["shares"]) == 1


def test_it_makes_things_in_its_project_alone(http: httpx.Client, bound: httpx.Client):
    session_id, run_id, at = work(bound)
    work(bound, project_id="apollo")
    for answer in (
        bound.post("create_session", json={"project_id": "default"}),
        bound.put(f"sessions/{session_id}/project", json={"project_id": "default"}),
        bound.post("copy_weights", json={"source_path": f"tinker://{run_id}/weights/w", "destination_project_id": "x"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["bound"] == "apollo"
    copy = {"source_path": f"tinker://{run_id}/weights/w", "destination_project_id": "apollo"}
    assert post(bound, "copy_weights", copy)["tinker_path"]
    assert bound.post(f"{at}/shares", json={"ttl_seconds": 60}).status_code == 200
    (share,) = bound.get("shares").json()["shares"]
    assert bound.delete(f"shares/{share['share_id']}").status_code == 204
    assert bound.post(f"{at}/publish").status_code == 204
    assert bound.put(f"{at}/ttl", json={"ttl_seconds": 3600}).status_code == 204
    assert bound.delete(at).status_code == 204
    assert bound.post(f"sessions/{session_id}/finish", json={"reason": {"type": "success"}}).status_code == 204


def test_the_first_session_of_a_repeated_key_is_not_handed_to_it(http: httpx.Client, bound: httpx.Client):
    headers = {"X-Idempotency-Key": "once"}
    assert http.post("create_session", json={}, headers=headers).status_code == 200
    assert bound.post("create_session", json={}, headers=headers).status_code == 403


def test_as_a_weights_access_token_it_lends_its_project_alone(
    owned: Owned, bound: httpx.Client, bob_http: httpx.Client
):
    _, run_id, _ = work(bound)
    for path, wanted in ((f"tinker://{run_id}/weights/w", 200), (owned.weights_path, 404)):
        body = {"tinker_path": path, "weights_access_token": KEY}
        assert bob_http.post("weights_info", json=body).status_code == wanted


def test_a_published_checkpoint_of_another_project_is_readable(owned: Owned, http: httpx.Client, bound: httpx.Client):
    at = f"training_runs/{owned.run_id}/checkpoints/weights/w"
    assert http.post(f"{at}/publish").status_code == 204
    assert bound.post("weights_info", json={"tinker_path": owned.weights_path}).status_code == 200
    assert bound.delete(at).status_code == 404


@pytest.fixture
def bound_service(server: GatewayServer, bound: httpx.Client) -> Iterator[tinker.ServiceClient]:
    """The SDK leaves its sockets to the garbage collector: collect them before they reach another test."""
    with tinker.ServiceClient(base_url=server.url, api_key=KEY) as client:
        yield client
    del client
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_sdk_trains_with_it(bound_service: tinker.ServiceClient, http: httpx.Client):
    run = bound_service.create_lora_training_client(MODEL.name, rank=8).result()
    path = run.save_state("mine").result().path
    sampler = bound_service.create_sampling_client(base_model=MODEL.name).result()
    prompt = tinker.ModelInput.from_ints([1, 2, 3])
    assert sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=2)).result().sequences
    projects = http.get("training_runs?project_id=apollo").json()["training_runs"]
    assert [each["last_checkpoint"]["tinker_path"] for each in projects] == [path]
