"""Clients that send and receive passes and samples as JSON: SDKs before 0.25."""

import itertools
import json
from typing import Any

import httpx
import pytest

from openrl.protocol.codec import decode_forward_backward
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import Owned, post, sample_body

ACCEPT_JSON = {"accept": "application/json"}
INPUTS = {
    "target_tokens": {"data": [2, 3, 4], "dtype": "int64", "shape": [3]},
    "weights": {"data": [1.0, 0.5, 0.0], "dtype": "float32", "shape": [3]},
}


def body(owned: Owned, field: str, seq_id: int, **inputs: Any) -> dict[str, Any]:
    datum = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "loss_fn_inputs": {**INPUTS, **inputs},
    }
    return {field: {"data": [datum], "loss_fn": "cross_entropy"}, "model_id": owned.run_id, "seq_id": seq_id}


def result(http: httpx.Client, request_id: str) -> httpx.Response:
    return http.post("retrieve_future", json={"request_id": request_id}, headers=ACCEPT_JSON)


@pytest.mark.parametrize(
    ("path", "field", "kind"),
    [("forward", "forward_input", "forward"), ("forward_backward", "forward_backward_input", "forward_backward")],
)
def test_a_pass_goes_to_the_worker_as_protobuf_and_comes_back_as_json(
    http: httpx.Client, owned: Owned, server: GatewayServer, path: str, field: str, kind: str
):
    request_id = post(http, path, body(owned, field, 3))["request_id"]
    answer = result(http, request_id)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.0, -2.0, -3.0], "dtype": "float32", "shape": [3]}}],
        "metrics": {"loss:sum": 1.0, "tokens:sum": 3.0},
    }
    row = server.scheduler.log[-1]
    assert (row.kind, row.seq_id, row.num_tokens) == (kind, 3, 3)
    queued = decode_forward_backward(server.blobs.get_payload(row.payload_ref))
    assert queued.is_forward_only == (kind == "forward")
    assert post(http, path, body(owned, field, 3))["request_id"] == request_id, "a retry is the same request"


def test_a_sample_comes_back_as_json_only_to_those_who_accept_nothing_else(http: httpx.Client, owned: Owned):
    request_id = post(http, "asample", sample_body(owned.sampler_id, 9, prompt_logprobs=True))["request_id"]
    shown = result(http, request_id).json()
    assert shown["sequences"] == [{"stop_reason": "length", "tokens": [1] * 4, "logprobs": [-0.5] * 4}]
    assert shown["prompt_logprobs"] == [None, -0.25, -0.25]
    for accept in ("*/*", "application/x-protobuf, application/json", "application/x-protobuf"):
        answer = http.post("retrieve_future", json={"request_id": request_id}, headers={"accept": accept})
        assert answer.headers["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        (
            {"weights": {"data": [1.0], "dtype": "float32", "shape": [1]}},
            "weights: rows is 1; it must be the datum's number of tokens, 3",
        ),
        ({"weights": {"data": [1e300, 0, 0], "dtype": "float32"}}, "entry is 1e+300; it must be between -3.4028"),
        ({"weights": {"data": ["a"], "dtype": "float32"}}, "weights.data"),
        ({"target_tokens": {"data": [1, 2, 600], "dtype": "int64"}}, "entry 2 is 600"),
    ],
)
def test_a_refused_body_names_the_value_and_uses_up_its_number(
    http: httpx.Client, owned: Owned, server: GatewayServer, inputs: dict[str, Any], part: str
):
    answer = http.post("forward_backward", json=body(owned, "forward_backward_input", 3, **inputs))
    assert answer.status_code == 400
    assert part in answer.json()["detail"]
    assert server.call(server.store.run_progress(owned.run_id))[1] == 4


@pytest.mark.parametrize(
    ("path", "field"), [("forward", "forward_input"), ("forward_backward", "forward_backward_input")]
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_body_over_the_limit_is_refused_and_uses_up_its_number(
    http: httpx.Client, owned: Owned, server: GatewayServer, path: str, field: str, is_streamed: bool
):
    large = body(owned, field, 3, weights={"data": [0.123456789] * 200_000, "dtype": "float32"})
    content = json.dumps(large).encode()
    pieces = (content[at : at + 2**16] for at in range(0, len(content), 2**16))
    headers = {"content-type": "application/json"}
    answer = http.post(path, content=pieces if is_streamed else content, headers=headers)
    shown = answer.status_code, answer.json()["code"], answer.json()["bound"]
    assert shown == (413, "too_large", f"at most {2**20} bytes")
    assert answer.json()["value"] > 2**20
    assert server.call(server.store.run_progress(owned.run_id))[1] == 4
    assert post(http, path, body(owned, field, 4))["request_id"], "the run goes on"


def test_a_body_far_over_the_limit_is_not_read_to_its_end(http: httpx.Client, owned: Owned, server: GatewayServer):
    content = json.dumps(body(owned, "forward_input", 3)).encode()
    padded = itertools.chain(itertools.repeat(b" " * 2**16, 100), [content])
    answer = http.post("forward", content=padded, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert server.call(server.store.run_progress(owned.run_id))[1] == 3


def test_another_tenant_neither_trains_the_run_nor_reads_its_results(
    http: httpx.Client, bob_http: httpx.Client, owned: Owned
):
    for path, field in (("forward", "forward_input"), ("forward_backward", "forward_backward_input")):
        assert bob_http.post(path, json=body(owned, field, 3)).status_code == 404
    request_id = post(http, "forward", body(owned, "forward_input", 3))["request_id"]
    assert result(bob_http, request_id).status_code == 404
    assert result(http, request_id).status_code == 200
