"""A gateway whose workers sample through vLLM refuses at the door what vLLM cannot do exactly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from openrl.config import GatewayConfig
from tests.gateway.gateway_server import GatewayServer
from tests.gateway.raw_client import create_owned, sample_body


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    running = GatewayServer(tmp_path, GatewayConfig(long_poll_s=0.5), samples_with_vllm=True)
    running.start()
    yield running
    running.stop()


def test_what_is_not_exact_gets_400_with_the_reason_and_the_rest_is_taken(http: httpx.Client):
    sampler_id = create_owned(http).sampler_id
    targets = {"data": [1, 2], "dtype": "int64", "shape": [2, 1]}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"sampling_params": {"max_tokens": 4, "temperature": 0.5, "top_p": 0.9}}, "temperature is 0.5"),
        ({"sampling_params": {"max_tokens": 4, "temperature": 0.001}}, "temperature is 0.001"),
        ({"sampling_params": {"max_tokens": 4}, "prompt_alt_tokens_k": 1}, "prompt_alt_tokens_k is 1"),
        ({"sampling_params": {"max_tokens": 4}, "target_prompt_logprobs": targets}, "target_prompt_logprobs is"),
    ]
    for number, (fields, reason) in enumerate(refused):
        answer = http.post("asample", json=sample_body(sampler_id, 10 + number, **fields))
        assert answer.status_code == 400, answer.text
        assert reason in answer.text
        assert "vLLM" in answer.text
    for number, params in enumerate([{"temperature": 0.5}, {"top_p": 0.9}, {"temperature": 0.0, "top_k": 5}]):
        body = sample_body(sampler_id, 20 + number, sampling_params={"max_tokens": 4, **params})
        assert http.post("asample", json=body).status_code == 200
