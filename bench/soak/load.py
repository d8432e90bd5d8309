"""Drives the traffic: opens tenants, warms up, measures, stops."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.soak.probes import Probe
from bench.soak.processes import ProcessWatch
from bench.soak.servers import Servers
from bench.soak.tally import Tally
from bench.soak.tenants import Plan, Tenant

PACE_S = 1.0
SHOW_EVERY_S = 30.0
LAG_S = 0.01
LAST_ANSWERS_S = 120.0
PROBE_S = 900.0
"""For the turn under way: three steps and two samples, each when it is its tenant's turn among all."""
MIN_STEPS = 2


@dataclass(slots=True)
class Outcome:
    """Everything that was seen, and when measuring began and ended."""

    tally: Tally
    watch: ProcessWatch
    started_at: float
    ended_at: float
    num_tenants: int
    warm_up_s: float
    lags_s: list[float] = field(default_factory=list[float])  # of the load generator itself
    losses: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # first and last, by run
    probe: dict[str, Any] = field(default_factory=dict[str, Any])
    loads: list[float] = field(default_factory=list[float])  # of the machine


async def soak(
    servers: Servers,
    plan: Plan,
    num_tenants: int,
    seconds: float,
    max_warm_up_s: float,
    probe: Probe | None,
    shows: bool,
) -> Outcome:
    """All of it; the servers run on."""
    show = partial(print, flush=True) if shows else _hide
    tally = Tally()
    watch = ProcessWatch(lambda: {**servers.pids(), "load generator": [os.getpid()]})
    tenants = [Tenant(i, servers.keys[i], servers.ports, plan, tally) for i in range(num_tenants)]
    begun = time.time()
    async with asyncio.timeout(max_warm_up_s):
        await asyncio.gather(*(tenant.open() for tenant in tenants))
    show(f"{num_tenants} tenants with {plan.num_runs} runs each after {time.time() - begun:.0f} s")
    outcome = Outcome(tally, watch, begun, begun, num_tenants, 0.0)
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(watch.run()), group.create_task(_measure_lag(outcome))]
        work = [group.create_task(tenant.work()) for tenant in tenants]
        await _warm_up(tenants, begun + max_warm_up_s)
        outcome.started_at = time.time()
        outcome.warm_up_s = outcome.started_at - begun
        show(f"warm after {outcome.warm_up_s:.0f} s")
        await _pass_time(outcome, seconds, show)
        outcome.ended_at = time.time()
        outcome.probe = await asyncio.to_thread(probe.finish, PROBE_S) if probe is not None else {}
        await asyncio.gather(*(tenant.stop() for tenant in tenants))
        await _finish(tenants, work, tally)
        for task in background:
            task.cancel()
    outcome.losses = [(run.losses[0], run.losses[-1]) for tenant in tenants for run in tenant.runs if run.losses]
    return outcome


def _hide(_: str) -> None:
    pass


async def _warm_up(tenants: Sequence[Tenant], deadline: float) -> None:
    """Until every run has stepped and saved: from there on nothing is new to the servers."""
    runs = [run for tenant in tenants for run in tenant.runs]
    while time.time() < deadline:
        if all(run.sampler_id and len(run.losses) >= MIN_STEPS for run in runs):
            return
        await asyncio.sleep(PACE_S)


async def _pass_time(outcome: Outcome, seconds: float, show: Callable[[str], object]) -> None:
    end = time.time() + seconds
    seen = len(outcome.tally.answers)
    while (left := end - time.time()) > PACE_S:
        await asyncio.sleep(min(SHOW_EVERY_S, left))
        outcome.loads.append(os.getloadavg()[0])
        answers, errors = len(outcome.tally.answers), outcome.tally.errors.total()
        memory = {role: round(all_[-1].anonymous_mb) for role, all_ in outcome.watch.readings.items()}
        told = f"{answers - seen} answers, {errors} errors, MB {memory}, load {outcome.loads[-1]:.1f}"
        show(f"{end - time.time():.0f} s to go: {told}")
        seen = answers


async def _measure_lag(outcome: Outcome) -> None:
    """How late this process's own event loop is: what of the latencies is not the servers'."""
    while True:
        due = time.perf_counter() + LAG_S
        await asyncio.sleep(LAG_S)
        outcome.lags_s.append(time.perf_counter() - due)


async def _finish(tenants: Sequence[Tenant], work: Sequence["asyncio.Task[None]"], tally: Tally) -> None:
    """Everything in flight gets its answer; what does not is lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_ANSWERS_S):
            await asyncio.wait(work)
    for tenant, task in zip(tenants, work, strict=True):
        if not task.done():
            tally.fail(f"no answer in {LAST_ANSWERS_S:.0f} s: {tenant.describe_open()}")
            task.cancel()
