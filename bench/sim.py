"""The scheduler and the worker's time-sharing on a virtual clock: GRPO jobs of several tenants on one H100.

    python -m bench.sim --json [--small] [--table] [--model 4b|0.6b]

What decides is the code of the server (`SchedulerState`, `Executor`, both lanes, `TimeShare`); what takes time are
formulas (`virtual_device`). Nothing is random but the jobs, which are drawn from seeds: the same numbers every time.
Exits with an error where a requirement of `bench.mux`, of fairness or of delay is not met. `--table` prints what other
settings of the policy would give. `limit` is the number of jobs: nothing is faster than each as if it were alone.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.grpo_jobs import GrpoJob, JobSpec, plan_step
from bench.virtual_device import QWEN3_06B, QWEN3_4B, DeviceTimes, VirtualClock, VirtualSampling, VirtualTraining
from bench.virtual_server import SAVE_S, Settings, VirtualServer
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.runs import SamplerSpec
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.training.base import AdamParams, OptimStep

MODELS = {"4b": QWEN3_4B, "0.6b": QWEN3_06B}
JOB = JobSpec(num_groups=16, group_size=8, prompt_tokens=256, median_tokens=96, max_tokens=256)
JOBS_ALIKE = (JOB,)
JOBS_MIXED = (
    JOB,
    replace(JOB, straggler_share=0.02),
    replace(JOB, num_groups=4, median_tokens=192, max_tokens=1024),
    replace(JOB, num_groups=32, group_size=4, prompt_tokens=512),
)
"""Jobs of other sizes, with long tails of lengths and with rewards that take 15 s."""
WARM_UP_S = 40.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of one simulation, after the warm-up."""

    busy: float
    episodes_per_s: float
    step_s: float
    steps: Sequence[int]  # of each job
    shares: Mapping[str, float]  # of device seconds, by tenant
    worst_delay_s: float
    p99_delay_s: float
    largest_group_s: float  # the longest training slice that could not be divided


def simulate(settings: Settings, specs: Sequence[JobSpec], tenants: Sequence[str], seconds: float) -> Outcome:
    """One job for each entry of `tenants`, of the specs in turn, started one after the other."""
    server = VirtualServer(settings)
    jobs = [GrpoJob(server, specs[i % len(specs)], tenant, i) for i, tenant in enumerate(tenants)]
    for job in jobs:
        server.at(0.7 * job.number, job.start)
    server.run(WARM_UP_S)
    before_s, tenants_before = server.device_busy_s(), Counter(server.busy_s)
    end = WARM_UP_S + seconds
    server.run(end)
    used = {tenant: server.busy_s[tenant] - tenants_before[tenant] for tenant in set(tenants)}
    steps = [job.steps_between(WARM_UP_S, end) for job in jobs]
    episodes = sum(n * job.spec.num_groups * job.spec.group_size for n, job in zip(steps, jobs, strict=True))
    return Outcome(
        busy=(server.device_busy_s() - before_s) / seconds,
        episodes_per_s=episodes / seconds,
        step_s=statistics.fmean([each for job in jobs for each in job.step_times(WARM_UP_S, end)] or [seconds]),
        steps=steps,
        shares={tenant: seconds / sum(used.values()) for tenant, seconds in sorted(used.items())},
        worst_delay_s=server.sampling.delays.worst_s(),
        p99_delay_s=server.sampling.delays.quantile_s(0.99),
        largest_group_s=server.training.largest_group_s,
    )


def exclusive_step_s(times: DeviceTimes, spec: JobSpec, num_steps: int) -> float:
    """Mean step of one job that calls the engines itself: no scheduler, no turns, no requests under way."""
    plans = {step: plan_step(spec, 0, step) for step in range(num_steps)}
    clock = VirtualClock()
    training = VirtualTraining(times, clock, 8192, lambda _, step: plans[step].group_rows)
    sampler = SamplerSpec("s", times.name, "a")
    prompt = np.zeros(spec.prompt_tokens, np.int32)
    for step, plan in plans.items():
        engine = VirtualSampling(times, clock, lambda name, plan=plan: plan.lengths[int(name)])
        for group, lengths in enumerate(plan.lengths):
            engine.add(SampleJob(str(group), sampler, prompt, len(lengths), SamplingOptions()))
        scored_at = 0.0
        while engine.has_work():
            for ended in engine.step():
                scored_at = max(scored_at, clock.now + plan.rewards_s[int(ended.request_id)])
        clock.now = scored_at
        for _ in training.forward_backward([ForwardBackwardInput("run", step, (), "importance_sampling")]):
            pass
        training.optim_step([OptimStep("run", AdamParams())])
        training.export_run("run")
        clock.now += SAVE_S
    return clock.now / num_steps


class Requirements:
    """What must hold; remembers what does not."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, what: str, value: float, holds: Callable[[float], bool]) -> float:
        """Note a failure; gives the rounded value back for the report."""
        if not holds(value):
            self.failed.append(f"{what}: {value:.4g}")
        return round(value, 3)


def multiplexing(settings: Settings, seconds: float, must: Requirements) -> dict[str, Any]:
    """The ratios of bench.mux: 1, 2, 3 and 6 jobs, each of a tenant of its own."""
    outcomes = {n: simulate(settings, JOBS_ALIKE, [f"t{i}" for i in range(n)], seconds) for n in (1, 2, 3, 6)}
    alone = outcomes[1]
    exclusive_s = exclusive_step_s(settings.times, JOB, 40)
    ratios = {n: outcome.episodes_per_s / alone.episodes_per_s for n, outcome in outcomes.items()}
    six = outcomes[6]
    return {
        "jobs": {
            n: {
                "busy": round(outcome.busy, 3),
                "episodes_per_s": round(outcome.episodes_per_s, 1),
                "ratio": round(ratios[n], 2),
                "step_s": round(outcome.step_s, 2),
                "worst_delay_ms": round(outcome.worst_delay_s * 1e3),
            }
            for n, outcome in outcomes.items()
        },
        "busy_3": must.check(
            "device busy with 3 jobs", outcomes[3].busy, lambda x: x >= 0.90 * min(1.0, 3 * alone.busy)
        ),
        "ratio_3": must.check("episodes/s of 3 jobs over 1", ratios[3], lambda x: x >= 2.4),
        "fewest_over_most_steps_6": must.check(
            "fewest over most steps of 6 jobs", min(six.steps) / max(six.steps), lambda x: x >= 0.8
        ),
        "alone_over_exclusive": must.check(
            "step of a job alone over exclusive", alone.step_s / exclusive_s, lambda x: x <= 1.05
        ),
        **delays(settings, list(outcomes.values()), must),
    }


def delays(settings: Settings, outcomes: Sequence[Outcome], must: Requirements) -> dict[str, float]:
    """Waits of decoding sequences: about `max_slice_s`, or a prefix group that takes longer after half of that."""
    worst = max(outcomes, key=lambda each: each.worst_delay_s)
    bound_s = max(1.1 * settings.max_slice_s, worst.largest_group_s + settings.max_slice_s / 2)
    return {
        "worst_delay_s": must.check(
            "longest wait of decoding sequences", worst.worst_delay_s, lambda delay_s: delay_s <= bound_s
        ),
        "p99_delay_s": round(max(each.p99_delay_s for each in outcomes), 3),
        "largest_group_s": round(max(each.largest_group_s for each in outcomes), 3),
    }


def fairness(settings: Settings, scale: int, seconds: float, must: Requirements) -> dict[str, Any]:
    """Eight times `scale` jobs, more than the device can serve: shares of tenants, and no job left behind."""
    even = simulate(settings, JOBS_MIXED, [f"t{i % 8}" for i in range(8 * scale)], seconds)
    greedy = simulate(settings, JOBS_ALIKE, ["greedy"] * 4 * scale + [f"t{i % 4}" for i in range(4 * scale)], seconds)
    weighed = simulate(
        replace(settings, tenant_shares={"t0": 3.0}), JOBS_ALIKE, [f"t{i % 4}" for i in range(8 * scale)], seconds
    )
    alike = [job for job in range(8 * scale) if job % len(JOBS_MIXED) == 0]
    return {
        "jobs": 8 * scale,
        "busy": must.check("device busy", even.busy, lambda x: x >= 0.97),
        "fewest_steps": must.check("fewest steps of a job", min(even.steps), lambda x: x >= 2),
        "fewest_over_most_steps": must.check(
            "fewest over most steps of jobs alike",
            min(even.steps[job] for job in alike) / max(even.steps[job] for job in alike),
            lambda x: x >= 0.6,
        ),
        "greedy_share": must.check(
            "share of one of five tenants with half the jobs", greedy.shares["greedy"], lambda x: 0.15 <= x <= 0.26
        ),
        "weighed_share": must.check(
            "share of a tenant that weighs 3 beside three of 1", weighed.shares["t0"], lambda x: 0.4 <= x <= 0.6
        ),
        **delays(settings, (even, greedy, weighed), must),
    }


def policy_table(settings: Settings, seconds: float) -> list[dict[str, Any]]:
    """What other bounds and lags give for 3 and 6 jobs."""
    alone = simulate(settings, JOBS_ALIKE, ["t0"], seconds).episodes_per_s
    rows: list[dict[str, Any]] = []
    variants = [(0.1, lag) for lag in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)]
    variants += [(bound, 0.5) for bound in (0.025, 0.05, 0.2, float("inf"))]
    for bound, lag in variants:
        row: dict[str, Any] = {"max_slice_s": bound, "max_training_lag_s": lag}
        for n in (3, 6):
            changed = replace(settings, max_slice_s=bound, max_training_lag_s=lag)
            outcome = simulate(changed, JOBS_ALIKE, [f"t{i}" for i in range(n)], seconds)
            row |= {
                f"busy_{n}": round(outcome.busy, 3),
                f"ratio_{n}": round(outcome.episodes_per_s / alone, 2),
                f"worst_delay_ms_{n}": round(outcome.worst_delay_s * 1e3),
            }
        rows.append(row)
    return rows


def measure(times: DeviceTimes, *, is_small: bool) -> dict[str, Any]:
    """The whole report; `failed` names what is required and does not hold."""
    started = time.perf_counter()
    must = Requirements()
    settings = Settings(times)
    mux = multiplexing(settings, 200.0 if is_small else 600.0, must)
    shares = [
        fairness(settings, scale, 600.0 if is_small else 2000.0, must) for scale in ((4,) if is_small else (4, 8))
    ]
    return {
        "benchmark": "sim",
        "value": mux["ratio_3"],
        "unit": "episodes/s of 3 jobs over those of 1",
        "required": 2.4,
        "limit": 3.0,
        "ratio": round(mux["ratio_3"] / 3.0, 3),
        "model": times.name,
        "mux": mux,
        "fairness": shares,
        "failed": must.failed,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only the result line")
    parser.add_argument("--small", action="store_true", help="shorter simulations")
    parser.add_argument("--table", action="store_true", help="other settings of the policy")
    parser.add_argument("--model", choices=list(MODELS), default="4b")
    options = parser.parse_args()
    if options.table:
        for row in policy_table(Settings(MODELS[options.model]), 600.0):
            print(json.dumps(row))
    result = measure(MODELS[options.model], is_small=options.small)
    if not options.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))
    if result["failed"]:
        raise SystemExit(f"not met: {'; '.join(result['failed'])}")


if __name__ == "__main__":
    main()
