"""Every option of a sample, sent by the SDK, against a slow twin: plain transformers and choices in plain Python."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types

from openrl.sampling.base import SamplingOptions
from openrl.sampling.randomness import SAMPLED_TOKENS, uniforms
from tests.contracts.loops import TEXT, Sampled, connect, prompt_of, sample, sampled
from tests.contracts.raw_api import RawApi
from tests.contracts.reference_model import ReferenceModel
from tests.live_server import MODEL_NAME, LiveServer
from tests.sampling.slow_choice import choose, distribution
from tests.sdk.conftest import Trained

HEADER = "X-OpenRL-Sampling-Params"
ADDED: dict[str, Any] = {"min_p": 0.05, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}
SEED = 2**64 - 9
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def penalising(server: LiveServer) -> Iterator[tinker.ServiceClient]:
    """Alice, with a header that adds what the SDK has no parameters for."""
    with connect(server.url, server.key, {HEADER: json.dumps(ADDED)}) as service:
        yield service


def check(got: list[Sampled], twin: ReferenceModel, prompt: list[int], options: SamplingOptions) -> None:
    """Tokens are the twin's, by the same uniform numbers; log-probabilities are the model's at the temperature."""
    assert options.seed is not None
    for index, each in enumerate(got):
        logits = twin.logits(prompt + each.tokens).detach()[len(prompt) - 1 : -1].tolist()
        expected = twin.next_token_logprobs(prompt + each.tokens, options.temperature or 1.0)[len(prompt) - 1 :]
        assert each.logprobs == pytest.approx(expected, abs=TOLERANCE)
        for position, token in enumerate(each.tokens):
            # The model's own rounding moves the borders between tokens by less than this.
            drawn = float(uniforms(u64(options.seed), SAMPLED_TOKENS, u64(index), u64(position))[0])
            nearby = [min(max(drawn + step, 0.0), 1.0 - 1e-9) for step in (-TOLERANCE, 0.0, TOLERANCE)]
            chances = distribution(logits[position], prompt, each.tokens[:position], options)
            is_ranked = options.top_k > 0 or options.top_p < 1
            assert token in [choose(chances, uniform, is_ranked) for uniform in nearby], (index, position)


def u64(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.full(1, value, np.uint64)


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.0}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.4}, {"top_k": 20, "top_p": 0.8}],
    ids=str,
)
def test_tokens_are_the_twins(trained: Trained, params: dict[str, Any]):
    got = sample(trained.sampler, TEXT, num_samples=3, seed=SEED, max_tokens=16, stop=[], **params)
    assert [len(each.tokens) for each in got] == [16] * 3
    check(got, trained.twin, TEXT, SamplingOptions(seed=SEED, **params))


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.8}, {"top_p": 0.7}], ids=str)
def test_penalties_and_min_p_come_by_a_header_for_one_client_alone(
    server: LiveServer,
    penalising: tinker.ServiceClient,
    bob: tinker.ServiceClient,
    trained: Trained,
    tiny_model_dir: Path,
    params: dict[str, Any],
):
    settings = types.SamplingParams(seed=SEED, max_tokens=20, stop=[], **params)
    mine = penalising.create_sampling_client(model_path=trained.path).result()
    his = bob.create_sampling_client(base_model=MODEL_NAME).result()
    futures = [each.sample(prompt_of(TEXT), 2, settings) for each in (mine, his, mine, his)]  # in one batch
    answers = [sampled(future.result()) for future in futures]
    assert answers[:2] == answers[2:]
    check(answers[0], trained.twin, TEXT, SamplingOptions(seed=SEED, **params, **ADDED))
    handed_on = tinker.SamplingClient.from_sampler_handle(mine.get_sampler_handle(), api_key=server.key)
    assert sampled(handed_on.sample(prompt_of(TEXT), 2, settings).result()) == answers[0]
    check(answers[1], ReferenceModel(tiny_model_dir, None), TEXT, SamplingOptions(seed=SEED, **params))


@pytest.mark.parametrize("name", list(ADDED))
def test_penalties_and_min_p_stand_in_the_body_of_other_clients(raw: RawApi, tiny_model_dir: Path, name: str):
    sampling = {"session_id": raw.new_session(), "sampling_session_seq_id": 0, "base_model": MODEL_NAME}
    sampler_id = raw.post("create_sampling_session", **sampling)["sampling_session_id"]
    added = {name: ADDED[name]}
    params = {"max_tokens": 20, "seed": 5, "stop": [], "temperature": 0.9, **added}
    prompt = {"chunks": [{"type": "encoded_text", "tokens": TEXT}]}
    raw.http.headers["Accept"] = "application/json"
    body = {"sampling_session_id": sampler_id, "seq_id": 1, "prompt": prompt, "sampling_params": params}
    [sequence] = raw.result(raw.post("asample", **body)["request_id"])["sequences"]
    got = Sampled(sequence["tokens"], sequence["logprobs"], sequence["stop_reason"])
    options = replace(SamplingOptions(seed=5, temperature=0.9), **added)
    check([got], ReferenceModel(tiny_model_dir, None), TEXT, options)


@pytest.mark.sdk("SamplingClient.sample")
def test_a_header_out_of_bounds_is_refused_by_the_name_of_the_parameter(server: LiveServer):
    with connect(server.url, server.key, {HEADER: '{"repetition_penalty": 0}'}) as service:
        sampler = service.create_sampling_client(base_model=MODEL_NAME).result()
        with pytest.raises(tinker.BadRequestError, match=r"repetition_penalty is 0.0; it must be between 0.1 and 10"):
            sample(sampler, TEXT)


def test_the_sdk_drops_parameters_that_its_class_does_not_name():
    """Why there is a header. Where this fails, an SDK sends them, and docs/sampling.md can say so."""

    class Richer(types.SamplingParams):
        min_p: float = 0.5

    for params in (types.SamplingParams.model_validate({"min_p": 0.5}), Richer()):
        request = types.SampleRequest(prompt=prompt_of([1]), sampling_params=params)
        assert "min_p" not in request.model_dump(mode="json")["sampling_params"]


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize(
    ("num_samples", "params", "message"),
    [
        (0, {}, "num_samples is 0; it must be between 1 and 1024"),
        (1025, {}, "num_samples is 1025; it must be between 1 and 1024"),
        (1, {"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        (1, {"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        (1, {"top_k": 0}, "top_k is 0; it must be at least 1, or -1 for all"),
        (1, {"top_p": 1.1}, "top_p is 1.1; it must be between 0 and 1"),
        (1, {"seed": 2**64}, "seed"),
        (1, {"stop": [512]}, "stop token is 512; it must be in the vocabulary: 0 to 511"),
        (1, {"stop": ["x"] * 65}, "number of stops is 65; it must be at most 64"),
        (1, {"stop": ""}, "characters of a stop string is 0; it must be 1 to 1024"),
    ],
)
def test_what_is_out_of_bounds_is_refused(trained: Trained, num_samples: int, params: dict[str, Any], message: str):
    with pytest.raises(tinker.BadRequestError, match=message):
        sample(trained.sampler, TEXT, num_samples, **params)


@pytest.mark.sdk("SamplingClient.sample")
def test_as_many_samples_as_the_bound_are_drawn_and_the_first_do_not_feel_the_others(trained: Trained):
    many = sample(trained.sampler, TEXT, num_samples=1024, max_tokens=1)
    assert len(many) == 1024
    assert many[:3] == sample(trained.sampler, TEXT, num_samples=3, max_tokens=1)
