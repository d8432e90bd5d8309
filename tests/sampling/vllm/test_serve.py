"""A real server whose worker trains and has vLLM sample, through the SDK, with two tenants."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from tests.live_server import MODEL_NAME, LiveServer, start_server
from tests.vllm_model import PlainModel
from tests.vllm_server import VllmServer

pytestmark = [  # the SDK leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PROMPT = list(range(20, 32))
GREEDY = types.SamplingParams(max_tokens=6, temperature=0.0)


@pytest.fixture
def vllm(tiny_model_dir: Path) -> Iterator[VllmServer]:
    server = VllmServer(PlainModel(tiny_model_dir))
    yield server
    server.stop()


@pytest.fixture
def live(tiny_model_dir: Path, tmp_path: Path, vllm: VllmServer) -> Iterator[LiveServer]:
    config = tmp_path / "openrl.toml"
    config.write_text(f'[sampling]\nengine = "vllm"\nvllm_urls = ["{vllm.url}"]\nvllm_health_s = 0.2\n')
    server = start_server(tiny_model_dir, tmp_path / "data", "--config", str(config))
    yield server
    server.stop()


def datum(tokens: list[int]) -> types.Datum:
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)  # pyright: ignore[reportArgumentType]


# 20, 21, 30: what a tenant trained is what it samples from, also after the server lost it.
def test_tenants_train_and_sample_their_own_weights(live: LiveServer, vllm: VllmServer):
    said = [train_and_sample(live.url, key, number, vllm) for number, key in enumerate((live.key, live.other_key))]
    gc.collect()
    assert said[0] != said[1]


def train_and_sample(url: str, key: str, number: int, vllm: VllmServer) -> list[int]:
    """What a tenant's greedy sample says; its log-probabilities are the trainer's."""
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        training = service.create_lora_training_client(MODEL_NAME, rank=4, train_unembed=False, seed=3).result()
        for _ in range(3):
            training.forward_backward([datum([*PROMPT, number + 5, 9, 9])], "cross_entropy").result()
            training.optim_step(types.AdamParams(learning_rate=0.05)).result()
        sampler = training.save_weights_and_get_sampling_client().result()
        prompt = types.ModelInput.from_ints(PROMPT)
        first = sampler.sample(prompt, 1, GREEDY).result().sequences[0]
        for name in list(vllm.adapters):
            vllm.evict(name)
        again = sampler.sample(prompt, 1, GREEDY).result().sequences[0]
        assert first.tokens == again.tokens
        whole = PROMPT + list(first.tokens)
        trained = training.forward([datum(whole)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
        expected = np.asarray(trained.data)
        scored = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result()
        np.testing.assert_allclose(np.asarray(scored[1:], float), expected, atol=1e-4)
        np.testing.assert_allclose(np.asarray(first.logprobs, float), expected[-6:], atol=1e-4)
        with pytest.raises(tinker.BadRequestError, match=r"temperature is 0\.7"):
            sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1, temperature=0.7, top_p=0.5)).result()
        return list(first.tokens)
