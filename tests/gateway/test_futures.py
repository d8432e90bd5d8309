"""Long polls, stored results, cancellation."""

import os
import time
from dataclasses import replace

import httpx
import pytest

from openrl.store.base import FinishedRequest
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import Owned, post, sample_body


def test_a_poll_is_held_and_then_told_to_come_again(http: httpx.Client, owned: Owned, server: GatewayServer):
    server.scheduler.is_holding.set()
    request_id = post(http, "asample", sample_body(owned.sampler_id, 2))["request_id"]
    started = time.monotonic()
    answer = http.post("retrieve_future", json={"request_id": request_id})
    assert time.monotonic() - started >= 0.45
    assert answer.status_code == 408
    content = answer.json()
    assert content.pop("docs").endswith("/docs/errors#not_ready")
    assert content == {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": "active",
        "code": "not_ready",
        "detail": f"request {request_id} has no result yet; ask again",
    }


def test_a_result_can_be_fetched_several_times(http: httpx.Client, owned: Owned):
    first, second = (http.post("retrieve_future", json={"request_id": owned.request_id}) for _ in range(2))
    assert first.headers["content-type"] == "application/x-protobuf"
    assert first.content == second.content != b""


@pytest.mark.parametrize("num_bytes", [0, 100, 2**16, 2**16 + 1, 2**20])
def test_results_of_every_size_come_back_whole(http: httpx.Client, owned: Owned, server: GatewayServer, num_bytes: int):
    server.scheduler.is_holding.set()
    request_id = post(http, "asample", sample_body(owned.sampler_id, 2))["request_id"]
    result = os.urandom(num_bytes)
    ref = server.blobs.put_payloads([result])[0]
    server.call(server.store.finish([FinishedRequest(request_id, "done", 1.0, result_ref=ref)]))
    assert http.post("retrieve_future", json={"request_id": request_id}).content == result


def test_a_cancelled_sample_fails_and_the_scheduler_is_told(http: httpx.Client, owned: Owned, server: GatewayServer):
    server.scheduler.is_holding.set()
    request_id = post(http, "asample", sample_body(owned.sampler_id, 2))["request_id"]
    assert http.post("cancel_future", json={"request_id": request_id}).status_code == 200
    assert server.told("cancel") == [request_id]
    answer = post(http, "retrieve_future", {"request_id": request_id})
    assert answer.pop("docs").endswith("/docs/errors#request_failed")
    assert answer == {"error": "the request was cancelled", "category": "user", "code": "request_failed"}
    assert http.post("cancel_future", json={"request_id": request_id}).status_code == 200
    assert server.told("cancel") == [request_id]


def test_training_requests_cannot_be_cancelled(http: httpx.Client, owned: Owned):
    step = {"model_id": owned.run_id, "seq_id": 3, "adam_params": {}}
    request_id = post(http, "optim_step", step)["request_id"]
    assert http.post("cancel_future", json={"request_id": request_id}).status_code == 400


def test_a_retried_submission_is_the_same_request(http: httpx.Client, owned: Owned, server: GatewayServer):
    step = {"model_id": owned.run_id, "seq_id": 3, "adam_params": {}}
    assert post(http, "optim_step", step) == post(http, "optim_step", step)
    sample = sample_body(owned.sampler_id, 5, num_samples=2)
    first = post(http, "asample", sample)
    assert first == post(http, "asample", sample)
    assert len(first["sample_sequence_ids"]) == 2
    save = {"model_id": owned.run_id, "seq_id": 4, "sampling_session_seq_id": 8}
    assert post(http, "save_weights_for_sampler", save) == post(
        http, "save_weights_for_sampler", {**save, "sampling_session_seq_id": 9}
    )
    named = {"model_id": owned.run_id, "seq_id": 1, "path": "w"}
    again = post(http, "save_weights", named)  # its checkpoint exists by now, made by the first try
    assert post(http, "retrieve_future", {"request_id": again["request_id"]})["path"] == owned.weights_path
    assert [row.seq_id for row in server.scheduler.log if row.run_id == owned.run_id] == [0, 1, 2, 3, 4]


def test_creations_are_repeated_without_effect(http: httpx.Client, owned: Owned):
    headers = {"X-Idempotency-Key": "k"}
    first, second = (http.post("create_session", json={}, headers=headers).json() for _ in range(2))
    assert first == second
    other = http.post("create_session", json={}, headers={"X-Idempotency-Key": "l"}).json()
    assert other != first
    model = {"session_id": owned.session_id, "model_seq_id": 0, "base_model": "tiny/llama", "lora_config": {"rank": 8}}
    assert post(http, "create_model", model) == post(http, "create_model", model)


def test_a_result_that_is_no_more_is_drawn_again_or_an_error_of_the_server(
    http: httpx.Client, owned: Owned, server: GatewayServer
):
    step_id = post(http, "optim_step", {"model_id": owned.run_id, "seq_id": 3, "adam_params": {}})["request_id"]
    post(http, "retrieve_future", {"request_id": step_id})
    for request_id in (owned.request_id, step_id):
        server.store._requests[request_id] = replace(server.store._requests[request_id], result_ref="")
    assert http.post("retrieve_future", json={"request_id": owned.request_id}).status_code == 410
    assert post(http, "retrieve_future", {"request_id": step_id})["category"] == "server"
