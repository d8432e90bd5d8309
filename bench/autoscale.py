"""Worker pools under load that comes and goes: the real scale signal, a simulated autoscaler, virtual time.

    python -m bench.autoscale [--trace FILE] [--seed 1] [--json]

What decides is the code of the server: `pool_signals` says how many workers are wanted, `deletion_cost` who goes first.
Around it a model of KEDA and the HPA (polls, activation, cooldown, stabilisation) and of a Deployment (pods take
minutes to start, those that start and those that cost least go first). Load is seeded, or what `openrl cluster record`
wrote of an installation, played three times, six hours apart. Exits with an error where a bound does not hold.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from bench.load_trace import HOUR, SessionSpec, Step, rates_of, read_trace, repeated, seeded_trace
from openrl.config import Config, PoolConfig
from openrl.scheduler.deletion_cost import deletion_cost
from openrl.scheduler.demand import Served, pool_signals
from openrl.store.cluster import Demand, SchedulerStatus, Side, WorkerStatus

POOL = "trainers"
TICK_S = 5.0
FINE_TICK_S = 1.0
"""For recorded loops, whose steps are short."""
SIDES: tuple[Side, ...] = ("train", "sample")


@dataclass(frozen=True, slots=True)
class Scaler:
    """How KEDA with an HPA behaves; the defaults are those of docs/operations.md."""

    poll_s: float = 30.0
    cooldown_s: float = 900.0  # without demand, before the last worker goes
    stabilization_s: float = 300.0  # fewer only if fewer were wanted for so long
    start_s: float = 180.0  # from a new pod to a worker that is ready
    max_workers: int = 8
    lost_polls: float = 0.05  # share of polls that get no answer


@dataclass(slots=True)
class Session:
    """A client and its runs."""

    name: str
    spec: SessionSpec
    next_step: int = 0
    step: Step | None = None  # that waits or runs
    left_s: float = 0.0  # device time until it is done
    asked_at: float = 0.0
    think_until: float = 0.0
    worker: "Worker | None" = None


@dataclass(slots=True)
class Worker:
    """A pod, ready from some time on."""

    name: str
    ready_at: float
    runs: list[Session] = field(default_factory=list[Session])

    def status(self) -> WorkerStatus:
        """As the scheduler tells it."""
        num_runs = sum(each.spec.num_runs for each in self.runs)
        waiting = sum(each.step is not None for each in self.runs)
        models = tuple({each.spec.model for each in self.runs})
        return WorkerStatus(self.name, POOL, "both", models, "working", num_runs, waiting)


@dataclass(slots=True)
class Report:
    """What came of it."""

    requests: int = 0
    unfinished: int = 0
    longest_wait_s: float = 0.0
    worker_hours: float = 0.0
    live_hours: float = 0.0  # in which a session was there
    needed_hours: float = 0.0  # workers that its runs and tokens need, at each moment
    hours_at_zero: float = 0.0
    starts_from_zero: int = 0
    most_workers: int = 0
    removed: int = 0
    removed_though_a_cheaper_one_was_there: int = 0
    runs_moved: int = 0


class Simulation:
    """Runs a trace to its end."""

    def __init__(
        self, trace: Sequence[SessionSpec], pool: PoolConfig, scaler: Scaler, seed: int = 1, tick_s: float = TICK_S
    ) -> None:
        self.now = 0.0
        self.report = Report()
        self._coming = sorted(trace, key=lambda each: each.start_s, reverse=True)
        self._pool = pool
        self._tick_s = tick_s
        self._config = Config(pools={POOL: pool})
        self._rates: dict[Served, float] = {
            (spec.model, side): rate for spec in trace for side, rate in zip(SIDES, rates_of(trace), strict=True)
        }
        self._scaler = scaler
        self._draw = random.Random(seed)
        self._names = count()
        self._sessions: list[Session] = []
        self._workers: list[Worker] = []
        self._next_poll = 0.0
        self._active_at = -math.inf
        self._wanted: list[tuple[float, int]] = []  # recent answers

    def run(self, quiet_s: float) -> Report:
        """Until all sessions have ended, and for so long after."""
        end = math.inf
        while self.now < end:
            self._arrive()
            self._work()
            if self.now >= self._next_poll:
                self._next_poll += self._scaler.poll_s
                self._poll()
            self._count()
            self.now += self._tick_s
            if not self._coming and not self._sessions and end == math.inf:
                end = self.now + quiet_s
            assert self.now < 30 * 24 * HOUR, "a session never ends"
        self.report.unfinished = len(self._sessions)
        return self.report

    def _arrive(self) -> None:
        while self._coming and self._coming[-1].start_s <= self.now:
            spec = self._coming.pop()
            think_until = spec.start_s + spec.steps[0].think_s
            self._sessions.append(Session(f"run-{next(self._names)}", spec, think_until=think_until))
        for session in list(self._sessions):
            if session.step is not None or self.now < session.think_until:
                continue
            if session.next_step == len(session.spec.steps):
                self._sessions.remove(session)
                if session.worker is not None:
                    session.worker.runs.remove(session)
                continue
            session.step = session.spec.steps[session.next_step]
            session.next_step += 1
            session.left_s, session.asked_at = sum(session.step.busy_s), self.now
            self.report.requests += 1

    def _work(self) -> None:
        ready = [worker for worker in self._workers if worker.ready_at <= self.now]
        for session in self._sessions:
            if session.worker is None and session.step is not None and ready:
                session.worker = min(ready, key=lambda each: len(each.runs))
                session.worker.runs.append(session)
        for worker in ready:
            left_s = self._tick_s
            for session in sorted(worker.runs, key=lambda each: each.asked_at):
                if session.step is None or left_s <= 0:
                    continue
                done_s = min(left_s, session.left_s)
                left_s -= done_s
                session.left_s -= done_s
                if session.left_s <= 0:
                    self._answer(session)

    def _answer(self, session: Session) -> None:
        now, steps = self.now + self._tick_s, session.spec.steps
        self.report.longest_wait_s = max(self.report.longest_wait_s, now - session.asked_at)
        is_last = session.next_step == len(steps)
        session.think_until = now + (session.spec.rest_s if is_last else steps[session.next_step].think_s)
        session.step = None

    def _poll(self) -> None:
        if self._draw.random() < self._scaler.lost_polls:
            return  # the autoscaler leaves things as they are
        ready = tuple(worker.status() for worker in self._workers if worker.ready_at <= self.now)
        status = SchedulerStatus(num_workers=len(ready), workers=ready)
        wanted = pool_signals(self._config, self._demand(), status, self.now, rates=self._rates)[POOL].wanted_workers
        self._wanted = [each for each in self._wanted if each[0] > self.now - self._scaler.stabilization_s]
        self._wanted.append((self.now, wanted))
        if wanted:
            self._active_at = self.now
        is_cool = self.now - self._active_at >= self._scaler.cooldown_s
        least = 0 if is_cool or not self._workers else 1
        target = min(max(least, *(each for _, each in self._wanted)), self._scaler.max_workers)
        if wanted == 0 and not self._workers:
            target = 0
        self._scale(target)

    def _scale(self, target: int) -> None:
        if target and not self._workers:
            self.report.starts_from_zero += 1
        while len(self._workers) < target:
            self._workers.append(Worker(f"pod-{next(self._names)}", self.now + self._scaler.start_s))
        while len(self._workers) > target:
            self._remove(min(self._workers, key=self._goes_first))

    def _goes_first(self, worker: Worker) -> tuple[bool, int, float]:
        """As a ReplicaSet chooses: what is not ready, then what costs least, then the newest."""
        return worker.ready_at <= self.now, deletion_cost(worker.status()), -worker.ready_at

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self.report.removed += 1
        self.report.runs_moved += len(worker.runs)
        if worker.runs and any(not other.runs for other in self._workers):
            self.report.removed_though_a_cheaper_one_was_there += 1
        for session in worker.runs:
            session.worker = None
        worker.runs.clear()

    def _demand(self) -> list[Demand]:
        demands: list[Demand] = []
        for model, tenant in sorted({(each.spec.model, each.spec.tenant) for each in self._sessions}):
            ours = [each for each in self._sessions if (each.spec.model, each.spec.tenant) == (model, tenant)]
            for number, side in enumerate(SIDES):
                waiting = [(each, each.step.tokens[number]) for each in ours if each.step is not None]
                waiting = [(each, tokens) for each, tokens in waiting if tokens]
                oldest = min((each.asked_at for each, _ in waiting), default=None)
                num_tokens = int(sum(tokens for _, tokens in waiting))
                live = sum(each.spec.num_runs if side == "train" else _samples(each.spec) for each in ours)
                demands.append(Demand(model, tenant, side, len(waiting), num_tokens, oldest, live))
        return demands

    def _count(self) -> None:
        report, hours = self.report, self._tick_s / HOUR
        report.worker_hours += len(self._workers) * hours
        report.most_workers = max(report.most_workers, len(self._workers))
        report.hours_at_zero += hours * (not self._workers)
        report.live_hours += hours * bool(self._sessions)
        num_runs = sum(each.spec.num_runs for each in self._sessions)
        report.needed_hours += hours * max(math.ceil(num_runs / self._pool.runs_per_worker), bool(self._sessions))


def _samples(spec: SessionSpec) -> bool:
    return any(step.tokens[1] for step in spec.steps)


def play(trace: Sequence[SessionSpec], *, is_recorded: bool, seed: int = 1) -> tuple[Report, list[str]]:
    """What comes of a trace, and the bounds that do not hold."""
    played = repeated(trace, 3, 6 * HOUR) if is_recorded else trace
    models = tuple(sorted({spec.model for spec in trace}))
    pool, scaler = PoolConfig(models=models, runs_per_worker=4), Scaler()
    report = Simulation(played, pool, scaler, seed, FINE_TICK_S if is_recorded else TICK_S).run(2 * HOUR)
    return report, problems(report, scaler, pool)


def problems(report: Report, scaler: Scaler, pool: PoolConfig) -> list[str]:
    """The bounds that do not hold."""
    # A cold start, a lost poll or two, and the work of a worker's runs before it.
    longest = scaler.start_s + 3 * scaler.poll_s + 10 * pool.target_wait_s
    # Every scale-down lags; a worker stays through its cooldown once for every time that the pool empties.
    most = 2.0 * report.needed_hours + (report.starts_from_zero + 1) * (scaler.cooldown_s + 600) / HOUR
    bounds = {
        "sessions that never ended": report.unfinished == 0,
        f"a wait of {report.longest_wait_s:.0f} s; at most {longest:.0f}": report.longest_wait_s <= longest,
        "the pool was never empty": report.hours_at_zero > 0,
        "the pool never came back": report.starts_from_zero > 1,
        f"{report.worker_hours:.1f} worker hours; at most {most:.1f}": report.worker_hours <= most,
        "a worker with runs went before an idle one": report.removed_though_a_cheaper_one_was_there == 0,
    }
    return [text for text, holds in bounds.items() if not holds]


def main() -> None:
    """Print the report; fail where a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    is_recorded = arguments.trace is not None
    trace = read_trace(arguments.trace) if is_recorded else seeded_trace(arguments.seed)
    report, found = play(trace, is_recorded=is_recorded, seed=arguments.seed)
    if arguments.json:
        print(json.dumps(asdict(report)))
    else:
        for name, value in asdict(report).items():
            print(f"{name:40} {value:.2f}" if isinstance(value, float) else f"{name:40} {value}")
    if found:
        raise SystemExit("; ".join(found))


if __name__ == "__main__":
    main()
