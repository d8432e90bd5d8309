"""Runs training commands one small step at a time, several under way at once."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, assert_never

from structlog.contextvars import bound_contextvars

from openrl.errors import RequestFailed
from openrl.protocol.codec import encode_forward_backward_output
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.protocol.runs import TrainingKind
from openrl.rpc.messages import (
    CloseRun,
    Execute,
    ExecuteDone,
    OpenRun,
    Report,
    RunLost,
    SnapshotRun,
    WorkItem,
)
from openrl.training.base import OptimStep
from openrl.worker.attempts import attempt
from openrl.worker.deliverer import Deliverer, Errand, Parcel, PendingOutcome, Product
from openrl.worker.engines import Engines
from openrl.worker.open_runs import OpenRuns
from openrl.worker.payloads import PayloadReader, encode_json
from openrl.worker.run_files import RunFiles
from openrl.worker.tenants import TenantCount
from openrl.worker.timeshare import Pace
from openrl.worker.training_turns import TrainingTurns, divide_exactly
from openrl.worker.training_work import Steps, TrainingCommand, TrainingWork
from openrl.worker.work_watch import WorkWatch

Produce = Callable[[], Product]
T = TypeVar("T")
Y = TypeVar("Y")

MIN_SLICE = 1 / 8
"""Of an engine's own measure: a pass is not divided further, below this its start costs more than its tokens."""
SLICE_GRAIN = 1 / 16
"""Slices are multiples of this, so that engines meet few sizes."""
MAX_OPEN_PASSES = 3
"""Each stages its gradients; a pass of a tenant who has one under way waits for it in any case."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What executing one item came to: how to make its result, or why it failed."""

    outcome: Produce | RequestFailed
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """The value that a generator returned."""

    value: T


class TrainingLane:
    """Used from the compute thread only. Between two calls of `advance` the device is free for sampling.

    A command never overtakes one that concerns a run of its own; other commands take turns (see TrainingTurns).
    """

    def __init__(
        self,
        runs: OpenRuns,
        files: RunFiles,
        payloads: PayloadReader,
        results: Deliverer,
        saves: Deliverer,
        report: Callable[[Report], None],
        clock: Callable[[], float],
        turns: TrainingTurns,
        watch: WorkWatch,
    ) -> None:
        self._watch = watch
        self._runs = runs
        self._files = files
        self._payloads = payloads
        self._results = results  # small and many
        self._saves = saves  # large: nobody else's result waits behind them
        self._report = report
        self._clock = clock
        self._turns = turns
        self._works: list[TrainingWork] = []  # as they came, those under way among them
        self._current: TrainingWork | None = None  # has the turn
        self._pass: TrainingWork | None = None  # had a turn last of all passes
        self._num_turns = 0
        self._tenants = TenantCount()
        self._turn_ends_at = math.inf
        self._paces: dict[tuple[str, TrainingKind], Pace] = {}  # by base model and kind
        self._step_pace = Pace()
        self.busy_s = 0.0

    def push(self, command: TrainingCommand) -> None:
        """Take a command."""
        work = TrainingWork(command, self._num_turns)
        self._turns.arrive(work.parts.keys() - self._tenants.present())
        self._tenants.enter(work.parts.keys())
        self._works.append(work)

    def set_shares(self, tenant_shares: Mapping[str, float]) -> None:
        """Divide the device between tenants by these from here on."""
        self._turns.set_shares(tenant_shares)

    def tenants(self) -> Collection[str]:
        """Who has work here; empty where `advance` would do nothing."""
        return self._tenants.present()

    def advance(self, max_s: float = math.inf) -> None:
        """One micro-batch, or one small command; of what can be divided, as much as should end within `max_s`."""
        started = self._clock()
        self._turn_ends_at = started + min(max_s, self._turns.max_turn_s(started))
        self._num_turns += 1
        work = self._current = self._turns.choose(self._candidates(), self._pass)
        if work.steps is None:
            work.steps, work.started_at = self._run(work), started
        with bound_contextvars(**work.log_fields):
            has_ended = isinstance(_next(work.steps), Finished)
        now = self._clock()
        self._current = None
        if work.is_pass:
            self._pass, work.touched = work, self._num_turns
        self._turns.charge(work.parts, now - started)
        if has_ended:
            self._end(work, now)

    def drop(self) -> None:
        """Forget every command and every run; nothing is reported."""
        for work in self._works:
            if work.steps is not None:
                work.steps.close()
        self._works.clear()
        for run_id in self._runs.ids():
            self._close(run_id)

    def _end(self, work: TrainingWork, now: float) -> None:
        self._works.remove(work)
        self._tenants.leave(work.parts.keys())
        self._turns.leave(work.parts.keys() - self._tenants.present(), now)
        if work.is_pass:
            self._pass = None
            self._turns.record_pass(work.parts, work.busy_s)

    def _candidates(self) -> Iterator[TrainingWork]:
        """What is under way, and what may begin."""
        passes = [work for work in self._works if work.is_pass and work.steps is not None]
        tenants = {tenant for work in passes for tenant in work.parts}
        runs_before: set[str] = set()
        for work in self._works:
            is_free = not work.is_pass or (len(passes) < MAX_OPEN_PASSES and not work.parts.keys() <= tenants)
            if work.steps is not None or (is_free and runs_before.isdisjoint(work.runs)):
                yield work
            runs_before |= work.runs

    def _run(self, work: TrainingWork) -> Steps:
        match work.command:
            case OpenRun():
                self._open(work.command)
            case CloseRun(run_id):
                self._close(run_id)
            case SnapshotRun(run_id):
                self._snapshot(run_id)
            case Execute():
                yield from self._execute(work, work.command)
            case _:
                assert_never(work.command)

    def _open(self, command: OpenRun) -> None:
        failure = attempt(lambda: self._files.open(command), what="opening the run")
        if failure is not None:
            self._report(RunLost(command.run.run_id, str(failure)))

    def _close(self, run_id: str) -> None:
        run = self._runs.remove(run_id)
        if run is not None:
            attempt(lambda: run.engines.training.close_run(run_id), what="closing the run")

    def _snapshot(self, run_id: str) -> None:
        write = attempt(lambda: self._files.snapshot(self._runs.get(run_id)), what="snapshot")
        if isinstance(write, RequestFailed):
            self._report(RunLost(run_id, str(write)))
        else:
            self._saves.put(Errand(write))

    def _execute(self, work: TrainingWork, command: Execute) -> Steps:
        match command.kind:
            case "forward" | "forward_backward":
                effects = yield from self._run_passes(work, command)
            case "optim_step":
                effects = yield from self._step_optimizers(command.items)
            case _:
                effects = yield from self._run_singly(command)
        self._note(command, effects)
        deliverer = self._saves if command.kind.startswith("save_weights") else self._results
        pending = self._share_time(work, command.items, effects)
        self._watch.executed(command, pending)
        deliverer.put(Parcel(pending, lambda outcomes: ExecuteDone(command.work_id, outcomes)))

    def _run_passes(self, work: TrainingWork, command: Execute) -> Generator[None, None, list[Effect]]:
        """All items packed together; one that cannot be read is left out and fails alone."""
        jobs = [attempt(lambda item=item: self._read_job(item), what=item.kind, item=item) for item in command.items]
        work.parts = _tokens_by_tenant(command.items, jobs)
        good = [job for job in jobs if not isinstance(job, RequestFailed)]
        results = iter((yield from self._drive(good, command.kind)) if good else [])
        return [Effect(job) if isinstance(job, RequestFailed) else _passes_effect(job, next(results)) for job in jobs]

    def _read_job(self, item: WorkItem) -> ForwardBackwardInput:
        self._runs.get(item.run_id)
        return self._payloads.forward_backward(item)

    def _drive(
        self, jobs: Sequence[ForwardBackwardInput], kind: TrainingKind
    ) -> Generator[None, None, Sequence[ForwardBackwardResult | RequestFailed]]:
        """Step the engine's generator; an engine that breaks fails every job of the pass."""
        engines = self._runs.get(jobs[0].run_id).engines
        pace = self._pace(engines, kind)
        passes = engines.training.forward_backward(jobs, lambda: pace.fit(self._turn_left_s(), engines.max_pass_tokens))
        while True:
            before_s = self.busy_s
            step = self._timed(lambda: _next(passes), what="forward_backward")
            if isinstance(step, RequestFailed):
                return [step] * len(jobs)
            if isinstance(step, Finished):
                return step.value
            pace.record(step, self.busy_s - before_s)
            yield

    def _step_optimizers(self, items: Sequence[WorkItem]) -> Generator[None, None, list[Effect]]:
        """As many runs at once as the turn has time for."""
        effects: list[Effect] = []
        step_s = 0.0  # of one run, in the latest call
        while left := items[len(effects) :]:
            if effects and self._turn_left_s() < step_s:
                yield
            together = left[: self._step_pace.fit(self._turn_left_s(), len(left))]
            started = self._clock()
            effects += self._step_together(together)
            seconds = self._clock() - started
            self._step_pace.record(len(together), seconds)
            step_s = seconds / len(together)
        return effects

    def _step_together(self, items: Sequence[WorkItem]) -> list[Effect]:
        """Steps of one engine go to it in one call; one that cannot be read fails alone."""
        results: dict[int, dict[str, float] | Produce | RequestFailed] = {}
        steps: dict[str, dict[int, OptimStep]] = {}  # by base model and place
        for place, item in enumerate(items):
            if item.has_failed:
                results[place] = self._timed(lambda item=item: self._drop_gradients(item.run_id), what=item.kind)
                continue
            read = attempt(lambda item=item: self._read_step(item), what=item.kind, item=item)
            if isinstance(read, RequestFailed):
                results[place] = read
            else:
                steps.setdefault(read[0], {})[place] = read[1]
        for of_engine in steps.values():
            results |= self._step_runs(of_engine)
        return [self._step_effect(item, results[place]) for place, item in enumerate(items)]

    def _read_step(self, item: WorkItem) -> tuple[str, OptimStep]:
        step = self._payloads.optim_step(item)
        return self._runs.get(item.run_id).engines.base_model.name, step

    def _step_runs(self, steps: Mapping[int, OptimStep]) -> Mapping[int, dict[str, float] | RequestFailed]:
        listed = list(steps.values())
        training = self._runs.get(listed[0].run_id).engines.training
        metrics = self._timed(lambda: training.optim_step(listed), what="optim_step")
        if not isinstance(metrics, RequestFailed):
            return dict(zip(steps, metrics, strict=True))
        if len(listed) > 1:  # the engine broke, and who has stepped before that cannot be known
            for step in listed:
                self._lose(step.run_id, str(metrics))
        return dict.fromkeys(steps, metrics)

    def _step_effect(self, item: WorkItem, result: dict[str, float] | Produce | RequestFailed) -> Effect:
        """A step that fails on our side uses up its gradient, however it fails: that much a replay can repeat."""
        if isinstance(result, dict):
            return Effect(lambda: Product(encode_json({"metrics": result, "type": "optim_step"})))
        is_ours = isinstance(result, RequestFailed) and result.category == "server" and not item.has_failed
        if is_ours and not item.is_replay and item.run_id in self._runs:
            dropped = attempt(lambda: self._drop_gradients(item.run_id), what="dropping the gradient")
            if isinstance(dropped, RequestFailed):
                self._lose(item.run_id, str(dropped))
        return Effect(result)

    def _drop_gradients(self, run_id: str) -> Produce:
        self._runs.get(run_id).engines.training.drop_gradients(run_id)
        return lambda: Product(b"")

    def _turn_left_s(self) -> float:
        return self._turn_ends_at - self._clock()

    def _pace(self, engines: Engines, kind: TrainingKind) -> Pace:
        key = (engines.base_model.name, kind)
        if key not in self._paces:
            tokens = engines.max_pass_tokens
            self._paces[key] = Pace(max(1, int(tokens * MIN_SLICE)), max(1, int(tokens * SLICE_GRAIN)))
        return self._paces[key]

    def _run_singly(self, command: Execute) -> Generator[None, None, list[Effect]]:
        effects: list[Effect] = []
        for item in command.items:
            effects.append(Effect(self._timed(lambda item=item: self._run_one(item), what=command.kind)))
            yield
        return effects

    def _run_one(self, item: WorkItem) -> Produce:
        match item.kind:
            case "create_model" | "unload_model":
                # Opening and closing are commands of their own; the request only needs its answer.
                self._runs.get(item.run_id)
                return lambda: Product(encode_json({"model_id": item.run_id, "type": item.kind}))
            case "load_weights":
                return self._files.load(item)
            case "save_weights":
                return self._files.save_for_training(item)
            case "save_weights_for_sampler":
                return self._files.save_for_sampler(item)
            case "save_weights_external":
                return self._files.save_for_other_tools(item)
            case "forward" | "forward_backward" | "optim_step" | "sample" | "create_custom_loss":
                raise RequestFailed(f"{item.kind} cannot run in a command of another kind", "server")
            case _:
                assert_never(item.kind)

    def _note(self, command: Execute, effects: Sequence[Effect]) -> None:
        for item, effect in zip(command.items, effects, strict=True):
            self._runs.note_executed(item.run_id, item.seq_id)
            if item.is_replay and isinstance(effect.outcome, RequestFailed):
                # What succeeded once must succeed again; otherwise the run here is not the run there was.
                self._lose(item.run_id, f"replay of request {item.seq_id} failed: {effect.outcome}")

    def _lose(self, run_id: str, error: str) -> None:
        self._close(run_id)
        self._report(RunLost(run_id, error))

    def _share_time(
        self, work: TrainingWork, items: Sequence[WorkItem], effects: Sequence[Effect]
    ) -> tuple[PendingOutcome, ...]:
        """Divide the device time of the command by tokens; evenly where there are none."""
        wall_s = self._clock() - work.started_at
        shares_s = divide_exactly(work.busy_s, [effect.num_tokens for effect in effects])
        return tuple(
            PendingOutcome(
                item.request_id,
                None if item.is_replay and not isinstance(effect.outcome, RequestFailed) else effect.outcome,
                effect.num_tokens,
                busy_s,
                wall_s,
                item=item,
            )
            for item, effect, busy_s in zip(items, effects, shares_s, strict=True)
        )

    def _timed(self, action: Callable[[], T], *, what: str) -> T | RequestFailed:
        started = self._clock()
        value = attempt(action, what=what)
        seconds = self._clock() - started
        assert self._current is not None, "time passes in turns only"
        self._current.busy_s += seconds
        self.busy_s += seconds
        return value


def _next(steps: Generator[Y, None, T]) -> Y | Finished[T]:
    """What a generator yields next, or its value once it has returned."""
    try:
        return next(steps)
    except StopIteration as end:
        return Finished(end.value)


def _tokens_by_tenant(
    items: Sequence[WorkItem], jobs: Sequence[ForwardBackwardInput | RequestFailed]
) -> Mapping[str, float]:
    tokens: defaultdict[str, float] = defaultdict(float)
    for item, job in zip(items, jobs, strict=True):
        tokens[item.tenant_id] += 1.0 if isinstance(job, RequestFailed) else max(_num_tokens(job), 1)
    return tokens


def _passes_effect(job: ForwardBackwardInput, result: ForwardBackwardResult | RequestFailed) -> Effect:
    num_tokens = _num_tokens(job)
    if isinstance(result, RequestFailed):
        return Effect(result, num_tokens)
    return Effect(lambda: Product(encode_forward_backward_output(result)), num_tokens)


def _num_tokens(job: ForwardBackwardInput) -> int:
    return sum(datum.num_tokens for datum in job.data)
