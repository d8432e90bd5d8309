"""Sampling parameters in a header: they join the body, which is what is kept."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrl.gateway.sampling_header import NAME
from openrl.protocol.wire import SampleRequest
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import create_owned, sample_body

STOPS: list[Any] = ["\n", ["a", "b"], [1, 2], [], None]


def submit(http: httpx.Client, body: dict[str, Any], header: str | None) -> httpx.Response:
    return http.post("asample", json=body, headers={} if header is None else {NAME: header})


def kept(server: GatewayServer, http: httpx.Client, body: dict[str, Any], header: str | None) -> SampleRequest:
    """The request as a worker will read it."""
    answer = submit(http, body, header)
    assert answer.status_code == 200, answer.text
    row = server.call(server.store.get_request("alice", answer.json()["request_id"]))
    return SampleRequest.model_validate_json(server.blobs.get_payload(row.payload_ref))


def test_what_the_header_names_is_kept_with_the_request(http: httpx.Client, server: GatewayServer):
    sampler_id = create_owned(http).sampler_id
    header = '{"min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": -0.5}'
    for i, stop in enumerate(STOPS):
        params = {"max_tokens": 4, "seed": 2**64 - 1, "temperature": 0.5, "stop": stop}
        targets = {"data": [1, 2], "dtype": "int64", "shape": [2, 1]}
        body = sample_body(sampler_id, 10 + i, sampling_params=params, target_prompt_logprobs=targets)
        without = SampleRequest.model_validate_json(json.dumps(body))
        expected = without.sampling_params.model_copy(update=json.loads(header))
        assert kept(server, http, body, header) == without.model_copy(update={"sampling_params": expected})


def test_what_the_body_names_stays(http: httpx.Client, server: GatewayServer):
    sampler_id = create_owned(http).sampler_id
    body = sample_body(sampler_id, 9, sampling_params={"max_tokens": 4, "min_p": 0.0})
    params = kept(server, http, body, '{"min_p": 0.3, "presence_penalty": 2.0}').sampling_params
    assert (params.min_p, params.presence_penalty) == (0.0, 2.0)


def test_without_the_header_the_body_is_kept_byte_by_byte(http: httpx.Client, server: GatewayServer):
    content = json.dumps(sample_body(create_owned(http).sampler_id, 9), indent=3).encode()
    request_id = http.post("asample", content=content).json()["request_id"]
    row = server.call(server.store.get_request("alice", request_id))
    assert server.blobs.get_payload(row.payload_ref) == content


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ('{"min_p": 1.5}', "min_p is 1.5; it must be between 0 and 1"),
        ('{"repetition_penalty": -1}', "repetition_penalty is -1.0; it must be between 0.1 and 10"),
        ('{"min_P": 0.5}', "header X-OpenRL-Sampling-Params: min_P is 0.5; it must be left out"),
        ('{"top_p": 0.5}', "header X-OpenRL-Sampling-Params: top_p is 0.5; it must be left out"),
        ('{"min_p": NaN}', "finite"),
        ("min_p=0.5", "header X-OpenRL-Sampling-Params: body is of 9 bytes; it must be valid JSON"),
        ("[]", "header X-OpenRL-Sampling-Params"),
    ],
)
def test_a_wrong_header_is_refused_by_name(http: httpx.Client, header: str, part: str):
    answer = submit(http, sample_body(create_owned(http).sampler_id, 9), header)
    assert answer.status_code == 400
    assert part in answer.json()["detail"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary(max_size=60).map(lambda raw: bytes(byte for byte in raw if byte > 31 and byte != 127).strip()))
def test_no_header_whatever_gives_a_server_error(http: httpx.Client, text: bytes):
    body = sample_body("nobody:sample:0", 9)
    answer = http.post("asample", json=body, headers=[(NAME.encode(), text)])
    assert answer.status_code in (400, 404)
