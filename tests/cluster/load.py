"""Two tenants that train and sample while something happens, and what they must see: the numbers of a quiet run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import tinker

from tests.contracts.loops import STEP, TEXT, Sampled, Trained, batch, new_run, numbers, sample, snapshot, train
from tests.contracts.saved_state import same_state, state_of

NUM_STEPS = 12


def check_disturbed(
    alice: tinker.ServiceClient,
    bob: tinker.ServiceClient,
    data_dir: Path,
    disturb: Callable[[], None],
    num_steps: int = NUM_STEPS,
) -> None:
    """Both tenants train and sample; `disturb` runs in the middle. No call fails, and no bit is another."""
    with ThreadPoolExecutor() as threads:
        expected = list(threads.map(partial(_quiet, num_steps), (alice, bob)))
        runs = [new_run(service) for service in (alice, bob)]
        samplers = [snapshot(run) for run, _, _ in expected]
        sampling = [threads.submit(_keep_sampling, sampler) for sampler in samplers]
        futures = [
            [(run.forward_backward(batch(3, i), "cross_entropy"), run.optim_step(STEP)) for i in range(num_steps)]
            for run in runs
        ]
        futures[0][2][0].result()
        disturb()
        for run, pending, (undisturbed, trained, _) in zip(runs, futures, expected, strict=True):
            got = [Trained(numbers(passed.result()), stepped.result().metrics or {}) for passed, stepped in pending]
            assert got == trained
            assert same_state(state_of(run, data_dir), state_of(undisturbed, data_dir))
        for each, (_, _, sampled) in zip(sampling, expected, strict=True):
            assert all(answer == sampled for answer in each.result())


def _quiet(num_steps: int, service: tinker.ServiceClient) -> tuple[tinker.TrainingClient, list[Trained], list[Sampled]]:
    run = new_run(service)
    trained = train(run, num_steps)
    return run, trained, _sample(snapshot(run))


def _keep_sampling(sampler: tinker.SamplingClient) -> list[list[Sampled]]:
    return [_sample(sampler) for _ in range(6)]


def _sample(sampler: tinker.SamplingClient) -> list[Sampled]:
    return sample(sampler, TEXT, 2, max_tokens=40, stop=[])
