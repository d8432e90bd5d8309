"""Load for bench.autoscale: clients that ask, wait for the answer and pause; recorded or seeded."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Step:
    """What a client asks for at once, after a pause; pairs are of training and of sampling."""

    think_s: float
    tokens: tuple[float, float]  # as admission estimates them: the signal sees these
    busy_s: tuple[float, float]  # device time that it takes


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """A client's loop: each step comes when the one before is answered."""

    start_s: float
    tenant: str
    steps: tuple[Step, ...]
    rest_s: float = 0.0  # that it stays after the last answer
    num_runs: int = 1
    model: str = "m"


def loop(
    start_s: float, tenant: str, num_steps: int, tokens: float, think_s: float, tokens_per_s: float = 2000.0
) -> SessionSpec:
    """Training steps of one size, with a pause after each."""
    step = Step(think_s, (tokens, 0.0), (tokens / tokens_per_s, 0.0))
    steps = (replace(step, think_s=0.0), *(step,) * (num_steps - 1))
    return SessionSpec(start_s, tenant, steps, rest_s=think_s)


def seeded_trace(seed: int, days: int = 2) -> list[SessionSpec]:
    """Working days with a busy morning and afternoon, a job in some nights, and weekends of nothing between."""
    draw = random.Random(seed)
    trace: list[SessionSpec] = []
    for day in range(days):
        midnight = 24 * HOUR * day
        for peak, num in ((9.5, 24), (14.0, 36)):
            for _ in range(num):
                start = midnight + HOUR * max(0.0, draw.gauss(peak, 0.8))
                size = draw.choice((4_000, 20_000, 60_000))
                trace.append(loop(start, f"t{draw.randrange(4)}", draw.randint(10, 60), size, draw.uniform(5, 90)))
        if draw.random() < 0.5:
            trace.append(loop(midnight + 22 * HOUR, "nightly", 120, 40_000, 10.0))
    return trace


def read_trace(file: Path) -> list[SessionSpec]:
    """What `openrl cluster record` wrote; sessions that asked for nothing are left out."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [_session(row) for row in rows if row["requests"]]


def repeated(trace: Sequence[SessionSpec], times: int, every_s: float) -> list[SessionSpec]:
    """The trace again and again, as on so many days."""
    return [replace(each, start_s=each.start_s + number * every_s) for number in range(times) for each in trace]


def rates_of(trace: Sequence[SessionSpec]) -> tuple[float, float]:
    """Tokens a second of one device, of training and of sampling, over the whole trace; 1.0 where there are none."""
    steps = [step for spec in trace for step in spec.steps]
    return _rate(steps, 0), _rate(steps, 1)


def _rate(steps: Sequence[Step], side: int) -> float:
    tokens, busy_s = sum(step.tokens[side] for step in steps), sum(step.busy_s[side] for step in steps)
    return tokens / busy_s if tokens and busy_s else 1.0


def _session(row: Mapping[str, Any]) -> SessionSpec:
    """Requests that were on their way at the same time are one step."""
    steps: list[Step] = []
    answered_s: float = row["start_s"]
    for request in row["requests"]:
        side = int(request["kind"] == "sample")
        tokens, busy_s = _on(side, request["tokens"]), _on(side, request["busy_s"])
        if steps and request["at_s"] < answered_s:
            last = steps.pop()
            tokens, busy_s = _sum(last.tokens, tokens), _sum(last.busy_s, busy_s)
            steps.append(Step(last.think_s, tokens, busy_s))
        else:
            steps.append(Step(max(0.0, request["at_s"] - answered_s), tokens, busy_s))
        answered_s = max(answered_s, request["at_s"] + (request["took_s"] or 0.0))
    runs = {request["run"] for request in row["requests"]} - {None}
    rest_s = max(0.0, row["end_s"] - answered_s)
    model = next((request["model"] for request in row["requests"] if request["model"]), "")
    return SessionSpec(row["start_s"], row["tenant"], tuple(steps), rest_s, len(runs), model)


def _on(side: int, amount: float) -> tuple[float, float]:
    return (0.0, float(amount)) if side else (float(amount), 0.0)


def _sum(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]
