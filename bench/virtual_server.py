"""One worker, its scheduler and their clients on a virtual clock: the real decisions, no sockets, files or tensors.

Real: `SchedulerState`, `Executor`, both lanes, `TimeShare`. Virtual: the engines (`virtual_device`), payloads, files
and the time that requests and results are under way.
"""

import heapq
import queue
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from bench.virtual_device import DeviceTimes, VirtualClock, VirtualSampling, VirtualTraining
from openrl.catalog import BaseModelInfo
from openrl.errors import RequestFailed
from openrl.protocol.datum import Datum, ForwardBackwardInput
from openrl.protocol.runs import SamplerSpec
from openrl.rpc.messages import (
    Command,
    ExecuteDone,
    OpenRun,
    Outcome,
    Report,
    RunLost,
    RunSnapshotted,
    SampleDone,
    SavedCheckpoint,
    WorkerReady,
    WorkItem,
)
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.scheduler.actions import Finish, LoadRun, LoadSampler, SendCommand
from openrl.scheduler.events import Event, RequestsArrived, RunLoaded, SamplerLoaded, WorkerJoined, WorkerReported
from openrl.scheduler.state import SchedulerState
from openrl.store.base import RequestRow, RunRow
from openrl.telemetry.metrics import create_worker_metrics
from openrl.training.base import AdamParams, OptimStep
from openrl.worker.deliverer import Deliverer, Delivery, Errand, PendingOutcome, Product
from openrl.worker.engines import Engines
from openrl.worker.executor import Executor
from openrl.worker.open_runs import OpenedRun, OpenRuns
from openrl.worker.payloads import PayloadReader
from openrl.worker.run_files import RunFiles
from openrl.worker.sampling_lane import SamplingLane
from openrl.worker.timeshare import MAX_SLICE_S, MAX_TRAINING_LAG_S, TimeShare
from openrl.worker.training_lane import TrainingLane
from openrl.worker.training_turns import TrainingTurns
from openrl.worker.work_watch import WorkWatch

REQUEST_S = 0.005
"""From a client's call to the scheduler, and from a stored result to the client; see bench.api."""
SAVE_S = 0.15
"""An adapter of a 4B model made durable; one after the other, beside the compute thread."""
WORKER = "w0"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a simulation is run with."""

    times: DeviceTimes
    max_slice_s: float = MAX_SLICE_S
    max_training_lag_s: float = MAX_TRAINING_LAG_S
    tenant_shares: Mapping[str, float] = field(default_factory=dict[str, float])
    micro_batch_tokens: int = 8192
    max_sequences: int = 256


@dataclass(slots=True)
class Work:
    """What the engines need to know of a request."""

    prompt_tokens: int = 0
    lengths: Sequence[int] = ()  # tokens that each sample will have
    group_rows: Sequence[int] = ()  # of a forward_backward


class VirtualPayloads(PayloadReader):
    """Payloads from memory."""

    def __init__(self, work: Mapping[str, Work]) -> None:
        self._work = work

    def forward_backward(self, item: WorkItem) -> ForwardBackwardInput:
        data = tuple(_datum(rows) for rows in self._work[item.request_id].group_rows)
        return ForwardBackwardInput(item.run_id, item.seq_id, data, "importance_sampling")

    def optim_step(self, item: WorkItem) -> OptimStep:
        return OptimStep(item.run_id, AdamParams())

    def sample_job(self, item: WorkItem) -> SampleJob:
        assert item.sampler is not None
        work = self._work[item.request_id]
        prompt = _datum(work.prompt_tokens).tokens
        return SampleJob(item.request_id, item.sampler, prompt, len(work.lengths), SamplingOptions())


@lru_cache(4096)
def _datum(num_tokens: int) -> Datum:
    return Datum(np.zeros(num_tokens, np.int32), {})


class VirtualFiles(RunFiles):
    """Exports take device time, files none."""

    def __init__(self, runs: OpenRuns) -> None:
        self._runs = runs

    def open(self, command: OpenRun) -> None:
        self._runs.add(command.run, command.snapshot_seq_id)

    def save_for_sampler(self, item: WorkItem) -> Callable[[], Product]:
        self._runs.get(item.run_id).engines.training.copy_adapter(item.run_id)
        sampler_id = f"{item.run_id}@{item.seq_id}"
        saved = SavedCheckpoint(item.run_id, "sampler_weights", "", sampler_id, 0, sampler_id=sampler_id)
        return lambda: Product(b"", saved)

    def snapshot(self, run: OpenedRun) -> Callable[[], Report]:
        run.engines.training.export_run(run.spec.run_id)
        report = RunSnapshotted(run.spec.run_id, run.last_seq_id, f"snapshot/{run.spec.run_id}/{run.last_seq_id}")
        return lambda: report


class VirtualDeliverer(Deliverer):
    """Reports after `delay_s`; one delivery after the other where that is not zero."""

    def __init__(self, clock: VirtualClock, delay_s: float, report: Callable[[float, Report], None]) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self._report_at = report
        self._free_at = 0.0

    def put(self, delivery: Delivery) -> None:
        self._free_at = max(self._free_at, self._clock.now) + self._delay_s
        if isinstance(delivery, Errand):
            self._report_at(self._free_at, delivery.run())
        else:
            self._report_at(self._free_at, delivery.report(tuple(_outcome(each) for each in delivery.pending)))


def _outcome(pending: PendingOutcome) -> Outcome:
    if isinstance(pending.produce, RequestFailed):
        raise pending.produce
    return Outcome(pending.request_id, result_ref="r", num_tokens=pending.num_tokens, busy_s=pending.busy_s)


class VirtualServer:
    """Events in the order of their times; the worker takes its next turn as soon as it is free."""

    def __init__(self, settings: Settings) -> None:
        self.clock = VirtualClock()
        self.work: dict[str, Work] = {}
        self.busy_s: defaultdict[str, float] = defaultdict(float)  # device seconds by tenant, as they are accounted
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._waiters: dict[str, Callable[[], None]] = {}
        self._runs: dict[str, RunRow] = {}
        self._position = 0
        self._free_at = 0.0
        self._state = SchedulerState(1e9, settings.tenant_shares)
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self.model = settings.times.name
        self.sampling = VirtualSampling(
            settings.times, self.clock, lambda request_id: self.work[request_id].lengths, settings.max_sequences
        )
        self.training = VirtualTraining(settings.times, self.clock, settings.micro_batch_tokens, self._rows_of)
        self.executor = self._create_executor(settings)
        ready = WorkerReady(WORKER, (self.model,), settings.micro_batch_tokens, settings.max_sequences)
        self._handle(WorkerJoined(WORKER, ready))

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something then."""
        self._num_events += 1
        heapq.heappush(self._events, (time, self._num_events, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something so much later."""
        self.at(self.clock.now + seconds, action)

    def add_run(self, run: RunRow) -> None:
        """A training run exists."""
        self._runs[run.spec.run_id] = run

    def submit(self, row: RequestRow, work: Work, done: Callable[[], None]) -> None:
        """A client sends a request; `done` is called when it has the result."""
        self.work[row.request_id] = work
        self._waiters[row.request_id] = done
        self._position += 1
        placed = replace(row, position=self._position)
        self.after(REQUEST_S, lambda: self._handle(RequestsArrived((placed,))))

    def run(self, until: float) -> None:
        """Let time pass."""
        is_working = True
        while True:
            next_event = self._events[0][0] if self._events else until
            if is_working and self._free_at <= min(next_event, until):
                self.clock.now = self._free_at
                is_working = self.executor.step()
                self._free_at = self.clock.now
            elif next_event >= until:
                self.clock.now = until
                return
            else:
                time, _, action = heapq.heappop(self._events)
                self.clock.now = time
                action()
                if not is_working and not self._inbox.empty():
                    is_working, self._free_at = True, max(self._free_at, time)

    def device_busy_s(self) -> float:
        """Seconds in which the device has computed."""
        stats = self.executor.stats()
        return stats.busy_train_s + stats.busy_sample_s

    def _create_executor(self, settings: Settings) -> Executor:
        info = BaseModelInfo(self.model, Path("/models/virtual"), "Virtual", 1000, 1 << 20)
        engines = {
            self.model: Engines(info, self.training, self.sampling, settings.micro_batch_tokens, settings.max_sequences)
        }
        runs = OpenRuns(engines)
        payloads = VirtualPayloads(self.work)
        results = VirtualDeliverer(self.clock, 0.0, self._report)
        saves = VirtualDeliverer(self.clock, SAVE_S, self._report)

        def now() -> float:
            return self.clock.now

        def report(message: Report) -> None:
            self._report(self.clock.now, message)

        turns = TrainingTurns(settings.tenant_shares)
        watch = WorkWatch(create_worker_metrics())
        training = TrainingLane(runs, VirtualFiles(runs), payloads, results, saves, report, now, turns, watch)
        sampling = SamplingLane(engines, payloads, results, now, watch)
        share = TimeShare(settings.max_slice_s, settings.max_training_lag_s, settings.tenant_shares)
        return Executor(self._inbox, training, sampling, runs, now, share, watch)

    def _rows_of(self, run_id: str, seq_id: int) -> Sequence[int]:
        return self.work[f"{run_id}/{seq_id}"].group_rows

    def _report(self, time: float, report: Report) -> None:
        assert not isinstance(report, RunLost), report.error
        if isinstance(report, ExecuteDone | SampleDone | RunSnapshotted):
            self.at(time, lambda: self._handle(WorkerReported(WORKER, report)))

    def _handle(self, event: Event) -> None:
        for action in self._state.handle(event, self.clock.now):
            match action:
                case SendCommand(_, command):
                    self._inbox.put(command)
                case LoadRun(run_id):
                    loaded = RunLoaded(run_id, self._runs[run_id])
                    self.after(0.0, lambda loaded=loaded: self._handle(loaded))
                case LoadSampler(sampler_id):
                    spec = SamplerSpec(sampler_id, self.model, sampler_id)
                    self.after(0.0, lambda spec=spec: self._handle(SamplerLoaded(spec.sampler_id, spec)))
                case Finish(request, _, outcome):
                    self._finished(request, outcome)
                case _:
                    pass

    def _finished(self, request: RequestRow, outcome: Outcome) -> None:
        assert not outcome.error, outcome.error
        self.busy_s[request.tenant_id] += outcome.busy_s
        del self.work[request.request_id]
        self.after(REQUEST_S, self._waiters.pop(request.request_id))
