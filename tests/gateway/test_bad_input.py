"""Whatever is sent, the answer is a plain 4xx that says what is wrong."""

import json
import socket
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from openrl.gateway.app import all_routes
from openrl.gateway.routes.api_keys import delete_own_key
from openrl.protocol.codec import encode_forward_backward
from openrl.protocol.datum import ForwardBackwardInput
from tests.gateway.gateway_server import MODEL, GatewayServer
from tests.gateway.raw_client import Owned, datum, post, result, sample_body
from tests.gateway.refusals import Refusals


def refused(http: httpx.Client, path: str, body: dict[str, Any], *parts: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-length"] == str(len(answer.content)) != "0"
    assert "content-encoding" not in answer.headers
    for part in parts:
        assert part in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"prompt": {"chunks": []}}, "number of prompt tokens is 0; it must be at least 1"),
        ({"prompt": {"chunks": [{"tokens": [1, 512]}]}}, "prompt token is 512; it must be in the vocabulary: 0 to 511"),
        ({"prompt": {"chunks": [{"tokens": [1, -1]}]}}, "prompt token is -1"),
        ({"prompt": {"chunks": [{"tokens": ["a", "b"]}]}}, "prompt.chunks.0.tokens.0"),
        (
            {"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}},
            "type is 'image'; it must be encoded_text",
        ),
        (
            {"prompt": {"chunks": [{"tokens": [1] * 125}]}},
            "125 tokens plus max_tokens 4 is over the context length 128",
        ),
        ({"num_samples": 0}, "num_samples is 0; it must be between 1 and 1024"),
        ({"num_samples": 2000}, "num_samples is 2000"),
        ({"num_samples": 1.5}, "num_samples"),
        ({"sampling_params": {"max_tokens": 0}}, "max_tokens is 0; it must be at least 1"),
        ({"sampling_params": {"temperature": -0.5}}, "temperature is -0.5"),
        ({"sampling_params": {"top_p": 1.5}}, "top_p is 1.5; it must be between 0 and 1"),
        ({"sampling_params": {"top_k": 0}}, "top_k is 0"),
        ({"sampling_params": {"min_p": 1.01}}, "min_p is 1.01; it must be between 0 and 1"),
        ({"sampling_params": {"min_p": -0.1}}, "min_p is -0.1"),
        ({"sampling_params": {"min_p": "0.1"}}, "sampling_params.min_p"),
        ({"sampling_params": {"repetition_penalty": 0.0}}, "repetition_penalty is 0.0; it must be between 0.1 and 10"),
        ({"sampling_params": {"repetition_penalty": 11}}, "repetition_penalty is 11"),
        ({"sampling_params": {"presence_penalty": 2.5}}, "presence_penalty is 2.5; it must be between -2 and 2"),
        ({"sampling_params": {"frequency_penalty": -3}}, "frequency_penalty is -3"),
        ({"sampling_params": {"seed": 2**64}}, "seed"),
        ({"sampling_params": {"stop": [""]}}, "characters of a stop string is 0"),
        ({"sampling_params": {"stop": [512]}}, "stop token is 512"),
        ({"sampling_params": {"stop": ["a", 1]}}, "stop"),
        ({"topk_prompt_logprobs": 1000}, "topk_prompt_logprobs is 1000; it must be between 0 and 512"),
        ({"prompt_logprobs_last_n": 1}, "needs prompt_logprobs=true"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "it must be between 1 and 2"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [1, 1]}}, "it must be [2, K]"),
        ({"target_prompt_logprobs": {"data": [1, 600], "dtype": "int64", "shape": [2, 1]}}, "it must be -1 to 511"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [2, 1]}}, "it must be that of shape"),
    ],
)
def test_wrong_sample_requests_are_refused_with_value_and_bound(
    http: httpx.Client, owned: Owned, changes: dict[str, Any], part: str
):
    refused(http, "asample", sample_body(owned.sampler_id, 9, **changes), part)


def test_nan_and_infinity_literals_are_refused(http: httpx.Client, owned: Owned):
    for literal in ("NaN", "Infinity", "1e999"):
        body = json.dumps(sample_body(owned.sampler_id, 9)).replace('"max_tokens": 4', f'"temperature": {literal}')
        answer = http.post("asample", content=body)
        assert answer.status_code == 400
        assert "finite number" in answer.json()["detail"]


def test_stops_of_every_form_and_large_numbers_are_taken(http: httpx.Client, owned: Owned):
    for i, stop in enumerate(["\n", ["a", "b"], [1, 2], [], None]):
        params = {"max_tokens": 4, "stop": stop, "seed": 2**64 - 1}
        post(http, "asample", sample_body(owned.sampler_id, 792706723000000000 + i, sampling_params=params))


def test_wrong_training_requests_name_value_and_bound_and_use_up_their_number(
    http: httpx.Client, owned: Owned, server: GatewayServer
):
    run = {"model_id": owned.run_id}
    refused(http, "optim_step", {**run, "seq_id": 3, "adam_params": {"learning_rate": -1.0}}, "learning_rate is -1.0")
    refused(
        http,
        "optim_step",
        {**run, "seq_id": 4, "adam_params": {"beta1": "x"}},
        "adam_params.beta1 is 'x'; it must be a valid number",
    )
    refused(http, "optim_step", {**run, "seq_id": 5, "optimizer_params": {"type": "dimuon"}}, "'dimuon'", "adamw")
    refused(http, "optim_step", {**run, "seq_id": 6}, "adam_params is missing")
    refused(
        http, "save_weights", {**run, "seq_id": 7, "path": "../x"}, "checkpoint name is '../x'; it must be 1 to 200"
    )
    refused(http, "save_weights", {**run, "seq_id": 8, "path": "x", "ttl_seconds": 60}, "ttl_seconds", "3600")
    refused(http, "save_weights_for_sampler", {**run, "seq_id": 9}, "either path")
    refused(
        http,
        "load_weights",
        {**run, "seq_id": 10, "path": owned.sampler_path},
        "kind is 'sampler_weights'; it must be weights",
    )
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 11, (datum([1, 600]),), "cross_entropy"))
    assert http.post("forward_backward", content=body).status_code == 400
    image = (
        encode_forward_backward(ForwardBackwardInput(owned.run_id, 12, (), "cross_entropy"))
        + b"\x1a\x04\x0a\x02\x12\x00"
    )
    answer = http.post("forward_backward", content=image)
    assert "type is 'image'; it must be encoded_text" in answer.json()["detail"]
    missing = http.post("load_weights", json={**run, "seq_id": 13, "path": f"tinker://{owned.run_id}/weights/none"})
    assert missing.status_code == 404
    _, first_missing, _ = server.call(server.store.run_progress(owned.run_id))
    assert first_missing == 14
    assert result(http, "optim_step", {**run, "seq_id": 14, "adam_params": {}})["metrics"] == {"grad_norm": 1.5}


def test_a_refused_recipient_and_a_refused_token_use_up_their_numbers(http: httpx.Client, owned: Owned):
    run = {"model_id": owned.run_id}
    external = {**run, "seq_id": 3, "path": "x", "age_encryption_recipients": ["age1nobody"]}
    refused(http, "save_weights_external", external, "'age1nobody' is neither an age1")
    load = {**run, "seq_id": 4, "path": owned.weights_path, "weights_access_token": "tml-nobody"}
    assert http.post("load_weights", json=load).status_code == 401
    assert result(http, "optim_step", {**run, "seq_id": 5, "adam_params": {}})["metrics"] == {"grad_norm": 1.5}


def test_requests_without_a_valid_number_are_refused(http: httpx.Client, owned: Owned):
    refused(http, "optim_step", {"model_id": owned.run_id, "seq_id": 0, "adam_params": {}}, "seq_id")
    refused(http, "optim_step", {"model_id": owned.run_id, "adam_params": {}}, "seq_id is missing")
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 0, (datum([1]),), "cross_entropy"))
    assert http.post("forward_backward", content=body).status_code == 400


def test_a_body_over_the_limit_is_refused_and_its_number_used_up(
    http: httpx.Client, owned: Owned, server: GatewayServer
):
    data = tuple(datum([1] * 100) for _ in range(1000))
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 3, data, "cross_entropy"))
    answer = http.post("forward_backward", content=body)
    assert answer.status_code == 413
    assert f"{len(body)} bytes is larger than the limit of 1048576" in answer.json()["detail"]
    _, first_missing, _ = server.call(server.store.run_progress(owned.run_id))
    assert first_missing == 4
    answer = http.post("asample", content=(b" " * 2**16 for _ in range(100)))
    assert answer.status_code == 413


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(server: GatewayServer):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /api/v1/asample HTTP/1.1\r\nHost: x\r\nX-API-Key: tml-alice\r\n")
        connection.sendall(b"Content-Length: 99999999999\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_zstd_bodies_are_taken_and_bombs_refused(http: httpx.Client, owned: Owned):
    body = encode_forward_backward(ForwardBackwardInput(owned.run_id, 3, (datum([1, 2]),), "cross_entropy"))
    headers = {"Content-Encoding": "zstd"}
    answer = http.post("forward_backward", content=zstandard.compress(body), headers=headers)
    assert answer.status_code == 200
    bomb = zstandard.compress(bytes(2**26))
    assert http.post("forward_backward", content=bomb, headers=headers).status_code == 413
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26))
    assert http.post("forward_backward", content=streamed, headers=headers).status_code == 413
    split = zstandard.compress(bytes(2**19)) * 3
    assert http.post("forward_backward", content=split, headers=headers).status_code == 413
    cut = http.post("forward_backward", content=zstandard.compress(body * 100)[:-5], headers=headers)
    assert (cut.status_code, cut.json()["code"]) == (400, "malformed")
    assert http.post("forward_backward", content=b"", headers=headers).status_code == 400
    assert http.post("forward_backward", content=b"\x28\xb5\x2f\xfdjunk", headers=headers).status_code == 400
    assert http.post("forward_backward", content=body, headers={"Content-Encoding": "br"}).status_code == 400


def test_keys_are_needed_and_must_be_valid(server: GatewayServer):
    with httpx.Client(base_url=f"{server.url}/api/v1") as anybody:
        assert anybody.get("get_server_capabilities").status_code == 401
        for key in ("tml-wrong", "wrong", "eyJ.a.b", "tml-" + "x" * 5000):
            answer = anybody.get("get_server_capabilities", headers={"X-API-Key": key})
            assert answer.status_code == 401
            assert key not in answer.text
        assert anybody.get("healthz").json() == {"status": "ok"}
        assert anybody.get("readyz").status_code == 200
        server.is_ready = False
        assert anybody.get("readyz").status_code == 503


def test_unknown_paths_and_methods_have_readable_answers(http: httpx.Client):
    assert http.get("nothing/here").status_code == 404
    assert http.get("asample").status_code == 405
    assert http.get("samplers/a%00b").status_code == 404
    assert http.get("training_runs?limit=0").status_code == 400
    assert http.get("checkpoints?offset=-1").status_code == 400
    assert "limit is 'x'" in http.get("checkpoints?limit=x").json()["detail"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    (
        *("model_id", "seq_id", "session_id", "model_seq_id", "path", "prompt", "sampling_params", "adam_params"),
        *("request_id", "sampling_session_id", "lora_config", "base_model", "tinker_path", "user_metadata", "tags"),
        *("reason", "ttl_seconds"),
    )
)
OBJECTS = st.dictionaries(FIELDS, JSON, max_size=8)
BODIES = st.binary(max_size=200) | OBJECTS.map(lambda body: json.dumps(body).encode())
SEGMENTS = st.sampled_from(["a:train:0", "weights", "sampler_weights", "x"]) | st.text(min_size=1, max_size=12)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # an example is 40 requests: shrinking takes minutes
)
@given(body=BODIES, segments=st.tuples(SEGMENTS, SEGMENTS, SEGMENTS))
def test_no_body_whatever_gives_a_server_error(http: httpx.Client, body: bytes, segments: tuple[str, str, str]):
    run_id, kind, name = (quote(segment, safe="") for segment in segments)
    others = {"session_id": run_id, "sampler_id": run_id, "token": name, "user_id": name, "key_id": name}
    others["share_id"] = name
    refusals = Refusals(http)
    for _, route in all_routes():
        if route.handler is delete_own_key:  # nothing can be wrong with it, and every later call would be
            continue
        path = route.path.format(run_id=run_id, kind=kind, name=name, **others)
        refusals.check(http.request(route.method, path.lstrip("/"), content=body), route, body)


def test_deeply_nested_and_odd_json_is_refused(http: httpx.Client, owned: Owned):
    for content in (b"[" * 100_000, b'{"a":' * 50_000, b'"\\ud800"', b"\xff\xfe", b"null", b"[]", b"1", b""):
        assert http.post("asample", content=content).status_code == 400
    assert http.post("create_session", json={"user_metadata": {"a": "\x00"}}).status_code == 400
    assert http.post("create_session", json={"display_name": "\x00"}).status_code == 400
    surrogate = b'{"session_id": "\\ud800", "model_seq_id": 0, "base_model": "x"}'
    assert http.post("create_model", content=surrogate).status_code == 400
    nested = json.dumps({"session_id": owned.session_id, "model_seq_id": 5, "base_model": MODEL.name})
    deep = nested[:-1] + ', "lora_config": {"rank": 8}, "user_metadata": {"a": ' + "[" * 150 + "]" * 150 + "}}"
    assert http.post("create_model", content=deep.encode()).status_code in (200, 400)
