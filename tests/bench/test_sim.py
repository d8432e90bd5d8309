"""The scheduler and the worker's policy on a virtual clock keep what is promised of them."""

from dataclasses import replace

import pytest
from bench.grpo_jobs import JobSpec
from bench.sim import JOB, JOBS_ALIKE, measure, simulate
from bench.virtual_device import QWEN3_4B
from bench.virtual_server import Settings

SETTINGS = Settings(QWEN3_4B)


def test_the_small_simulation_meets_every_requirement():
    result = measure(QWEN3_4B, is_small=True)
    assert result["failed"] == []
    assert result["value"] >= 2.4


def test_the_same_seeds_give_the_same_numbers():
    first, second = (simulate(SETTINGS, JOBS_ALIKE, ["a", "b"], 20.0) for _ in range(2))
    assert first == second


def test_without_a_bound_sequences_wait_for_whole_micro_batches():
    """The measure sees what the bound is for."""
    tenants = [f"t{i}" for i in range(6)]
    unbounded = simulate(replace(SETTINGS, max_slice_s=float("inf")), JOBS_ALIKE, tenants, 60.0)
    bounded = simulate(SETTINGS, JOBS_ALIKE, tenants, 60.0)
    assert unbounded.worst_delay_s > 0.3
    assert bounded.worst_delay_s <= 0.11
    assert bounded.episodes_per_s == pytest.approx(unbounded.episodes_per_s, rel=0.1)


def test_a_straggling_reward_holds_up_its_own_job_alone():
    slow = replace(JOB, straggler_share=1.0, straggler_s=30.0)
    others: list[JobSpec] = [JOB, JOB, slow]
    outcome = simulate(SETTINGS, others, ["a", "b", "c"], 200.0)
    alone = simulate(SETTINGS, JOBS_ALIKE, ["a", "b"], 200.0)
    assert outcome.steps[2] <= 7
    assert min(outcome.steps[:2]) >= 0.9 * min(alone.steps)
