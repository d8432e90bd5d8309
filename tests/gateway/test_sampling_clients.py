"""retrieve_futures and join_sampling_session by plain HTTP."""

import time
from typing import Any

import httpx
import pytest

from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import Owned, post, sample_body


def poll(sampler_id: str, clone: int = 0, cursor: int = 0, **changes: Any) -> dict[str, Any]:
    target = {"type": "sampling_session", "sampling_session_id": sampler_id, "cloned_sampler_id": clone}
    return {"target": target, "prev_cursor": cursor, **changes}


def test_a_poll_tells_what_ended_since_its_cursor_and_how_large_it_is(http: httpx.Client, owned: Owned):
    answer = post(http, "retrieve_futures", poll(owned.sampler_id))
    [told] = answer["completions"]
    assert (told["state"], told["request_id"]) == ("finished", owned.request_id)
    result = http.post("retrieve_future", json={"request_id": owned.request_id, "allow_metadata_only": False})
    assert told["response_payload_uncompressed_size"] == len(result.content)
    assert post(http, "retrieve_futures", poll(owned.sampler_id)) == answer  # an answer that was lost
    later = post(http, "retrieve_futures", poll(owned.sampler_id, cursor=answer["cursor"], timeout=0.0))
    assert later == {"completions": [], "cursor": answer["cursor"]}


def test_a_poll_is_held_until_something_ends_and_an_acknowledgement_is_not(
    http: httpx.Client, owned: Owned, server: GatewayServer
):
    cursor = post(http, "retrieve_futures", poll(owned.sampler_id))["cursor"]
    started = time.monotonic()
    assert post(http, "retrieve_futures", poll(owned.sampler_id, cursor=cursor))["completions"] == []
    assert time.monotonic() - started >= server.app_config.long_poll_s
    started = time.monotonic()
    acknowledgement = poll(owned.sampler_id, cursor=cursor, timeout=0.0, retrieved_request_ids=[owned.request_id])
    assert post(http, "retrieve_futures", acknowledgement)["cursor"] == cursor
    assert time.monotonic() - started < server.app_config.long_poll_s


def next_completions(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = post(http, "retrieve_futures", body)
    while not answer["completions"]:
        answer = post(http, "retrieve_futures", {**body, "prev_cursor": answer["cursor"]})
    return answer


def test_failed_and_cancelled_samples_are_told_without_a_size(http: httpx.Client, owned: Owned, server: GatewayServer):
    cursor = post(http, "retrieve_futures", poll(owned.sampler_id))["cursor"]
    server.scheduler.fails = lambda _: "no luck"
    failed = post(http, "asample", sample_body(owned.sampler_id, 2))["request_id"]
    first = next_completions(http, poll(owned.sampler_id, cursor=cursor))
    server.scheduler.is_holding.set()
    cancelled = post(http, "asample", sample_body(owned.sampler_id, 3))["request_id"]
    post(http, "cancel_future", {"request_id": cancelled})
    seen = first["completions"] + next_completions(http, poll(owned.sampler_id, cursor=first["cursor"]))["completions"]
    assert [each["request_id"] for each in seen] == [failed, cancelled]
    assert {each["state"] for each in seen} == {"failed"}


def test_each_clone_hears_of_its_own_samples(http: httpx.Client, owned: Owned):
    number = post(http, "join_sampling_session", {"sampling_session_id": owned.sampler_id})["client_counter"]
    assert number == 1
    mine = post(http, "asample", sample_body(owned.sampler_id, number * 10**9))["request_id"]
    answer = post(http, "retrieve_futures", poll(owned.sampler_id, clone=number))
    assert [each["request_id"] for each in answer["completions"]] == [mine]
    assert post(http, "join_sampling_session", {"sampling_session_id": owned.sampler_id})["client_counter"] == 2


def test_another_tenants_sampling_session_is_not_found(http: httpx.Client, bob_http: httpx.Client, owned: Owned):
    for body in (poll(owned.sampler_id), poll(owned.sampler_id, timeout=0.0), poll("nothing", timeout=0.0)):
        assert bob_http.post("retrieve_futures", json=body).status_code == 404
    taking = poll(owned.sampler_id, timeout=0.0, retrieved_request_ids=[owned.request_id])
    assert bob_http.post("retrieve_futures", json=taking).status_code == 404
    assert bob_http.post("join_sampling_session", json={"sampling_session_id": owned.sampler_id}).status_code == 404
    assert http.post("retrieve_future", json={"request_id": owned.request_id}).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout": -1.0},
        {"prev_cursor": -1},
        {"prev_cursor": 2**63},
        {"retrieved_request_ids": [1]},
        {"target": {"type": "other", "sampling_session_id": "x"}},
        {"target": {"type": "sampling_session", "sampling_session_id": "x", "cloned_sampler_id": 2**63}},
        {"target": {"type": "sampling_session", "sampling_session_id": "x", "cloned_sampler_id": -1}},
    ],
)
def test_bad_polls_are_refused(http: httpx.Client, owned: Owned, changes: dict[str, Any]):
    assert http.post("retrieve_futures", json=poll(owned.sampler_id) | changes).status_code == 400
