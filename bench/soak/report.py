"""Turns what was seen into figures, and holds them against their bounds."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import create_engine, select

from bench.soak.load import Outcome
from bench.soak.tally import Answer, quantile, spread
from openrl.store.schema import requests

MAX_P99_MS = 100.0
MAX_SPREAD = 1.5
MAX_GROWTH = 0.05
MIN_GROWTH_MB = 8.0
"""Less than this is not growth: allocators keep as much."""


def report(outcome: Outcome, database_url: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result line."""
    seconds = outcome.ended_at - outcome.started_at
    answers = [each for each in outcome.tally.answers if outcome.started_at <= each.received_at <= outcome.ended_at]
    samples = _by_tenant(answers, "sample", outcome.num_tenants)
    steps = _by_tenant(answers, "optim_step", outcome.num_tenants)
    delays = _delays_ms(answers, _finished_at(database_url))
    processes = outcome.watch.summary(outcome.started_at, outcome.ended_at)
    errors = outcome.tally.errors + _probe_errors(outcome.probe)
    spreads = {"samples": spread(samples), "steps": spread(steps)}
    p99 = quantile(delays, 0.99)
    within = {
        "errors": not errors,
        "answer_p99": p99 is not None and p99 <= MAX_P99_MS,
        "fairness": all(each is not None and each <= MAX_SPREAD for each in spreads.values()),
        "memory": not (grown := _grown(processes)),
    }
    return {
        "benchmark": "soak",
        "form": options.form,
        "model": "tiny" if options.tiny else options.model,
        "value": _rounded(p99),
        "unit": "ms from completion to answer, p99",
        "required": MAX_P99_MS,
        "holds": within,
        "errors": errors.total(),
        "errors_by_kind": dict(errors),
        "tenants": outcome.num_tenants,
        "runs": outcome.num_tenants * options.runs,
        "in_flight": outcome.num_tenants * options.samples,
        "seconds": round(seconds),
        "warm_up_s": round(outcome.warm_up_s),
        "answer_ms": _quantiles(delays),
        "answers_timed": len(delays),
        "generator_lag_ms": _quantiles([1e3 * each for each in outcome.lags_s]),
        "fairness": {name: _rounded(each) for name, each in spreads.items()} | {"required": MAX_SPREAD},
        "samples": sum(samples),
        "samples_per_s": round(sum(samples) / seconds, 1),
        "steps": sum(steps),
        "steps_per_s": round(sum(steps) / seconds, 2),
        "answers_by_kind": dict(Counter(each.kind for each in answers)),
        "polls_again": outcome.tally.num_polls,
        "throttled": outcome.tally.num_throttled,
        "runs_whose_loss_fell": sum(last < first for first, last in outcome.losses),
        "probe": outcome.probe,
        "memory_growth_required": MAX_GROWTH,
        "grown": grown,
        "processes": processes,
        "load_average": {"least": min(outcome.loads, default=0.0), "most": max(outcome.loads, default=0.0)},
        "cores": os.cpu_count(),
    }


def _by_tenant(answers: Sequence[Answer], kind: str, num_tenants: int) -> list[int]:
    counts = Counter(each.tenant for each in answers if each.kind == kind)
    return [counts[tenant] for tenant in range(num_tenants)]


def _finished_at(database_url: str) -> dict[str, float]:
    """When each request ended, as the servers wrote it."""
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(requests.c.request_id, requests.c.finished_at))
            return {row.request_id: row.finished_at for row in rows if row.finished_at is not None}
    finally:
        engine.dispose()


def _delays_ms(answers: Sequence[Answer], finished_at: dict[str, float]) -> list[float]:
    return [1e3 * (each.received_at - max(finished_at[each.request_id], each.polled_at)) for each in answers]


def _grown(processes: dict[str, dict[str, Any]]) -> list[str]:
    """Roles whose memory is not flat."""
    return [
        role
        for role, each in processes.items()
        if each["growth"] > MAX_GROWTH and each["last_third_mb"] - each["first_third_mb"] > MIN_GROWTH_MB
    ]


def _probe_errors(probe: dict[str, Any]) -> Counter[str]:
    errors: Counter[str] = Counter()
    if probe.get("error"):
        errors[f"SDK: {probe['error']}"[:120]] += 1
    if probe.get("differing"):
        errors["SDK: other numbers than on the idle server"] += probe["differing"]
    return errors


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    parts = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: _rounded(quantile(values, part)) for name, part in parts.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
