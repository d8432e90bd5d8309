"""The cookbook's two checks of a server's numbers: temperatures, and sampler against trainer."""

from itertools import combinations

import numpy as np
import pytest
import tinker
from tinker import types

from tests.contracts.loops import TEXT, datum, new_run, numbers, prompt_of, resume, sample, snapshot

PROMPT = TEXT[:8]
LONG_TEXT = [(37 * i + i // 5) % 512 for i in range(200)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(alice: tinker.ServiceClient) -> tinker.TrainingClient:
    """It has learnt TEXT well enough to prefer some tokens to others."""
    learner = new_run(alice, rank=8)
    for _ in range(8):
        learner.forward_backward([datum(TEXT)], "cross_entropy")
        learner.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    return learner


@pytest.fixture(scope="module")
def sampler(run: tinker.TrainingClient) -> tinker.SamplingClient:
    return snapshot(run)


def at_temperature_one(sampler: tinker.SamplingClient, tokens: list[int]) -> dict[int, float]:
    """Log-probability of each token after PROMPT, by scoring it as part of a prompt."""
    futures = {token: sampler.compute_logprobs(prompt_of([*PROMPT, token])) for token in tokens}
    scored = {token: future.result()[len(PROMPT)] for token, future in futures.items()}
    return {token: value for token, value in scored.items() if value is not None}


@pytest.mark.sdk("SamplingClient.sample", "SamplingClient.compute_logprobs")
@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.2, 1.5, 1.8])
def test_a_temperature_divides_the_differences_of_logprobs(sampler: tinker.SamplingClient, temperature: float):
    drawn = sample(sampler, PROMPT, num_samples=20, max_tokens=1, seed=42, temperature=temperature)
    hot = {each.tokens[0]: each.logprobs[0] for each in drawn}
    assert len(hot) >= 2, "one token alone shows nothing"
    cool = at_temperature_one(sampler, list(hot))
    assert cool.keys() == hot.keys()
    for one, other in combinations(hot, 2):
        assert hot[one] - hot[other] == pytest.approx((cool[one] - cool[other]) / temperature, abs=TOLERANCE)


@pytest.mark.sdk("SamplingClient.sample")
def test_a_token_has_the_same_logprob_in_a_sequence_and_alone(sampler: tinker.SamplingClient):
    [whole] = sample(sampler, PROMPT, max_tokens=20, seed=42, temperature=0.5, stop=[])
    num_found = 0
    for i, (token, logprob) in enumerate(zip(whole.tokens, whole.logprobs, strict=True)):
        alone = sample(
            sampler, PROMPT + whole.tokens[:i], num_samples=5, max_tokens=1, seed=1000 * (i + 1), temperature=0.5
        )
        same = [each.logprobs[0] for each in alone if each.tokens == [token]]
        num_found += bool(same)
        assert same == pytest.approx([logprob] * len(same), abs=TOLERANCE)
    assert num_found >= 5


@pytest.mark.sdk("TrainingClient.forward", "TrainingClient.load_state", "TrainingClient.save_weights_for_sampler")
def test_a_text_has_the_logprobs_of_the_trainer_in_the_sampler(
    alice: tinker.ServiceClient, run: tinker.TrainingClient, sampler: tinker.SamplingClient
):
    trained = numbers(run.forward([datum(LONG_TEXT)], "cross_entropy").result()).logprobs[0]
    assert mean_square(sampler, trained) <= 1e-10
    # And by the paths of what it saved, in a run and a sampler that know nothing else of it.
    kept = run.save_state("compared", ttl_seconds=3600).result().path
    loaded = numbers(resume(alice, kept, False).forward([datum(LONG_TEXT)], "cross_entropy").result()).logprobs[0]
    assert loaded == trained
    named = run.save_weights_for_sampler("compared", ttl_seconds=3600).result().path
    assert mean_square(alice.create_sampling_client(model_path=named).result(), trained) <= 1e-10


def mean_square(sampler: tinker.SamplingClient, trained: list[float]) -> float:
    first, *scored = sampler.compute_logprobs(prompt_of(LONG_TEXT)).result()
    assert first is None
    return float(np.mean((np.array(scored, dtype=float) - np.array(trained)) ** 2))
