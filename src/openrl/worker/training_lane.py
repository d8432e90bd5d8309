"""Runs training commands in the order they came, one small step at a time."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, assert_never

from openrl.errors import RequestFailed
from openrl.protocol.codec import encode_forward_backward_output
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
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
from openrl.worker.attempts import attempt
from openrl.worker.deliverer import Deliverer, Errand, Parcel, PendingOutcome, Product
from openrl.worker.open_runs import OpenRuns
from openrl.worker.payloads import PayloadReader, encode_json
from openrl.worker.run_files import RunFiles

TrainingCommand = OpenRun | CloseRun | SnapshotRun | Execute
Produce = Callable[[], Product]
Steps = Generator[None, None, None]
T = TypeVar("T")


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
    """Used from the compute thread only. Between two calls of `advance` the device is free for sampling."""

    def __init__(
        self,
        runs: OpenRuns,
        files: RunFiles,
        payloads: PayloadReader,
        results: Deliverer,
        saves: Deliverer,
        report: Callable[[Report], None],
        clock: Callable[[], float],
    ) -> None:
        self._runs = runs
        self._files = files
        self._payloads = payloads
        self._results = results  # small and many
        self._saves = saves  # large: nobody else's result waits behind them
        self._report = report
        self._clock = clock
        self._waiting: deque[TrainingCommand] = deque()
        self._current: Steps | None = None
        self._execute_busy_s = 0.0
        self._execute_started_at = 0.0
        self.busy_s = 0.0

    def push(self, command: TrainingCommand) -> None:
        """Queue a command behind those that came before."""
        self._waiting.append(command)

    def has_work(self) -> bool:
        """Whether `advance` would do anything."""
        return self._current is not None or bool(self._waiting)

    def advance(self) -> None:
        """One micro-batch, or one small command."""
        if self._current is None:
            self._current = self._run(self._waiting.popleft())
        if isinstance(_next(self._current), Finished):
            self._current = None

    def _run(self, command: TrainingCommand) -> Steps:
        match command:
            case OpenRun():
                self._open(command)
            case CloseRun(run_id):
                self._close(run_id)
            case SnapshotRun(run_id):
                self._snapshot(run_id)
            case Execute():
                yield from self._execute(command)
            case _:
                assert_never(command)

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

    def _execute(self, command: Execute) -> Steps:
        self._execute_busy_s = 0.0
        self._execute_started_at = self._clock()
        match command.kind:
            case "forward" | "forward_backward":
                effects = yield from self._run_passes(command.items)
            case "optim_step":
                effects = [self._step_optimizer(item) for item in command.items]
            case _:
                effects = yield from self._run_singly(command)
        self._note(command, effects)
        deliverer = self._saves if command.kind.startswith("save_weights") else self._results
        deliverer.put(
            Parcel(self._share_time(command.items, effects), lambda outcomes: ExecuteDone(command.work_id, outcomes))
        )

    def _run_passes(self, items: Sequence[WorkItem]) -> Generator[None, None, list[Effect]]:
        """All items packed together; one that cannot be read is left out and fails alone."""
        jobs = [attempt(lambda item=item: self._read_job(item), what=item.kind) for item in items]
        good = [job for job in jobs if not isinstance(job, RequestFailed)]
        results = iter((yield from self._drive(good)) if good else [])
        return [Effect(job) if isinstance(job, RequestFailed) else _passes_effect(job, next(results)) for job in jobs]

    def _read_job(self, item: WorkItem) -> ForwardBackwardInput:
        self._runs.get(item.run_id)
        return self._payloads.forward_backward(item)

    def _drive(
        self, jobs: Sequence[ForwardBackwardInput]
    ) -> Generator[None, None, Sequence[ForwardBackwardResult | RequestFailed]]:
        """Step the engine's generator; an engine that breaks fails every job of the pass."""
        training = self._runs.get(jobs[0].run_id).engines.training
        passes = training.forward_backward(jobs)
        while True:
            step = self._timed(lambda: _next(passes), what="forward_backward")
            if isinstance(step, RequestFailed):
                return [step] * len(jobs)
            if step is not None:
                return step.value
            yield

    def _step_optimizer(self, item: WorkItem) -> Effect:
        """A step that fails on our side uses up its gradient, however it fails: that much a replay can repeat."""
        if item.has_failed:
            return Effect(self._timed(lambda: self._drop_gradients(item.run_id), what=item.kind))
        metrics = self._timed(lambda: self._step(item), what=item.kind)
        if not isinstance(metrics, RequestFailed):
            return Effect(lambda: Product(encode_json({"metrics": metrics, "type": "optim_step"})))
        if metrics.category == "server" and not item.is_replay:
            dropped = attempt(lambda: self._drop_gradients(item.run_id), what="dropping the gradient")
            if isinstance(dropped, RequestFailed):
                self._lose(item.run_id, str(dropped))
        return Effect(metrics)

    def _drop_gradients(self, run_id: str) -> Produce:
        self._runs.get(run_id).engines.training.drop_gradients(run_id)
        return lambda: Product(b"")

    def _step(self, item: WorkItem) -> dict[str, float]:
        step = self._payloads.optim_step(item)
        [metrics] = self._runs.get(item.run_id).engines.training.optim_step([step])
        if isinstance(metrics, RequestFailed):
            raise metrics
        return metrics

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

    def _share_time(self, items: Sequence[WorkItem], effects: Sequence[Effect]) -> tuple[PendingOutcome, ...]:
        """Divide the device time of the command by tokens; evenly where there are none."""
        total = sum(effect.num_tokens for effect in effects)
        wall_s = self._clock() - self._execute_started_at
        shares = [effect.num_tokens / total if total else 1 / len(effects) for effect in effects]
        return tuple(
            PendingOutcome(
                item.request_id,
                None if item.is_replay and not isinstance(effect.outcome, RequestFailed) else effect.outcome,
                effect.num_tokens,
                self._execute_busy_s * share,
                wall_s,
            )
            for item, effect, share in zip(items, effects, shares, strict=True)
        )

    def _timed(self, action: Callable[[], T], *, what: str) -> T | RequestFailed:
        started = self._clock()
        value = attempt(action, what=what)
        seconds = self._clock() - started
        self._execute_busy_s += seconds
        self.busy_s += seconds
        return value


def _next(steps: Generator[None, None, T]) -> Finished[T] | None:
    """Advance a generator; its value once it has returned."""
    try:
        next(steps)
    except StopIteration as end:
        return Finished(end.value)
    return None


def _passes_effect(job: ForwardBackwardInput, result: ForwardBackwardResult | RequestFailed) -> Effect:
    num_tokens = sum(datum.num_tokens for datum in job.data)
    if isinstance(result, RequestFailed):
        return Effect(result, num_tokens)
    return Effect(lambda: Product(encode_forward_backward_output(result)), num_tokens)
