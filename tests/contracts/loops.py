"""The loop of a researcher in small pieces: connect, make datums and runs, train, sample."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker
from tinker import types

from tests.live_server import MODEL_NAME

TEXT = [5, 61, 17, 118, 9, 240, 33, 7, 402, 90, 13, 255, 71, 300, 28, 46]
"""Tokens of no meaning; more than enough for most tests."""
STEP = types.AdamParams(learning_rate=1e-2)


def connect(url: str, key: str, headers: Mapping[str, str] | None = None) -> tinker.ServiceClient:
    os.environ["TINKER_TELEMETRY"] = "0"  # read by the SDK alone
    return tinker.ServiceClient(base_url=url, api_key=key, default_headers_overrides=headers)


def new_run(service: tinker.ServiceClient, rank: int = 4, seed: int = 3, **flags: Any) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model=MODEL_NAME, rank=rank, seed=seed, **flags).result()


def resume(service: tinker.ServiceClient, path: str, with_optimizer: bool = True) -> tinker.TrainingClient:
    if with_optimizer:
        return service.create_training_client_from_state_with_optimizer(path).result()
    return service.create_training_client_from_state(path).result()


def prompt_of(tokens: Sequence[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens))


def datum(tokens: Sequence[int], weights: float | Sequence[float] = 1.0) -> types.Datum:
    """Next-token prediction over `tokens`."""
    num_targets = len(tokens) - 1
    given = list(weights) if isinstance(weights, Sequence) else [weights] * num_targets
    return raw_datum(tokens[:-1], target_tokens=list(tokens[1:]), weights=given)


def raw_datum(tokens: Sequence[int], **inputs: Any) -> types.Datum:
    return types.Datum(model_input=prompt_of(tokens), loss_fn_inputs=inputs)


def batch(num_datums: int, first: int = 0) -> list[types.Datum]:
    """Datums of different lengths, 4 to 10 tokens each."""
    rng = np.random.default_rng([7, first])
    return [datum(rng.integers(1, 512, 4 + (first + i) % 7).tolist()) for i in range(num_datums)]


@dataclass(frozen=True, slots=True)
class Passed:
    """All numbers that a forward_backward answers."""

    logprobs: list[list[float]]
    loss: float


def backward(run: tinker.TrainingClient, data: list[types.Datum], loss_fn: Any = "cross_entropy") -> Passed:
    return numbers(run.forward_backward(data, loss_fn).result())


def numbers(output: types.ForwardBackwardOutput) -> Passed:
    logprobs = [np.asarray(each["logprobs"].data).reshape(-1).tolist() for each in output.loss_fn_outputs]
    return Passed(logprobs, output.metrics["loss:sum"])


def step_metrics(run: tinker.TrainingClient, params: types.AdamParams = STEP) -> dict[str, float]:
    metrics = run.optim_step(params).result().metrics
    assert metrics is not None
    return metrics


@dataclass(frozen=True, slots=True)
class Trained:
    """All numbers of one step."""

    passed: Passed
    metrics: dict[str, float]


def train(run: tinker.TrainingClient, num_steps: int, first: int = 0, params: types.AdamParams = STEP) -> list[Trained]:
    """Steps on batches of 3, pipelined: each step's batch follows from `first` and its number."""
    futures = [
        (run.forward_backward(batch(3, first + i), "cross_entropy"), run.optim_step(params)) for i in range(num_steps)
    ]
    return [Trained(numbers(passed.result()), stepped.result().metrics or {}) for passed, stepped in futures]


@dataclass(frozen=True, slots=True)
class Sampled:
    """All numbers of one generated sequence."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str


def sample(sampler: tinker.SamplingClient, tokens: Sequence[int], num_samples: int = 1, **params: Any) -> list[Sampled]:
    given: dict[str, Any] = {"max_tokens": 8, "seed": 1}
    settings = types.SamplingParams(**(given | params))
    return sampled(sampler.sample(prompt_of(tokens), num_samples, settings).result())


def sampled(response: types.SampleResponse) -> list[Sampled]:
    return [Sampled(list(s.tokens), list(s.logprobs or ()), str(s.stop_reason)) for s in response.sequences]


def snapshot(run: tinker.TrainingClient, name: str | None = None) -> tinker.SamplingClient:
    if name is None:
        return run.save_weights_and_get_sampling_client().result()
    return run.create_sampling_client(run.save_weights_for_sampler(name).result().path).result()
