"""A store and workers in plain Python around a SchedulerState, checking every rule as it goes.

A run's state on a worker is the list of state-changing numbers applied to it. A request's result is
that list after the request: the slow twin, one executor that runs each run in order, gives the same.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from openrl.config import WorkerRole
from openrl.errors import ErrorCategory
from openrl.protocol.runs import SamplerSpec, changes_run
from openrl.rpc.messages import (
    Cancel,
    CloseRun,
    Command,
    Execute,
    ExecuteDone,
    OpenRun,
    Outcome,
    RunSnapshotted,
    Sample,
    SampleDone,
    SetDraining,
    SetTenantShares,
    Shutdown,
    SnapshotRun,
    WorkerDraining,
    WorkerReady,
    WorkItem,
)
from openrl.scheduler.actions import Finish, LoadRun, LoadSampler, MarkRunClosed, RecordSnapshot, SendCommand
from openrl.scheduler.events import (
    DrainAsked,
    Event,
    PauseOver,
    RequestsArrived,
    RunLoaded,
    SamplerLoaded,
    WorkerGone,
    WorkerJoined,
    WorkerReported,
)
from openrl.scheduler.state import SchedulerState
from openrl.store.base import RequestRow, RunRow

from .rows import MODEL


@dataclass
class SimRun:
    applied: list[int]
    last_seq: int


@dataclass
class SimWorker:
    worker_id: str
    ready: WorkerReady
    commands: deque[Command] = field(default_factory=deque[Command])
    results_lane: deque[ExecuteDone | SampleDone] = field(default_factory=deque[ExecuteDone | SampleDone])
    saves_lane: deque[ExecuteDone | RunSnapshotted] = field(default_factory=deque[ExecuteDone | RunSnapshotted])
    runs: dict[str, SimRun] = field(default_factory=dict[str, SimRun])
    samples: dict[str, int] = field(default_factory=dict[str, int])
    tenant_shares: dict[str, float] = field(default_factory=dict[str, float])
    unreported: int = 0  # Executes sent whose report was not delivered
    is_draining: bool = False
    stays: bool = False  # drained, but not about to end

    def takes(self, side: WorkerRole) -> bool:
        return not self.is_draining and self.ready.role in (side, "both")

    def holds(self, run_id: str) -> bool:
        return run_id in self.runs or any(isinstance(c, OpenRun) and c.run.run_id == run_id for c in self.commands)

    def has_work(self) -> bool:
        return bool(self.commands or self.results_lane or self.saves_lane or self.samples)


class World:
    def __init__(self, max_replay_s: float = 5.0) -> None:
        self.state = SchedulerState(max_replay_s)
        self.now = 0.0
        self.runs: dict[str, RunRow] = {}
        self.rows: dict[str, RequestRow] = {}  # acknowledged
        self.finished: dict[str, str] = {}
        self.results: dict[str, list[int]] = {}
        self.snapshots: dict[str, tuple[list[int], int]] = {}
        self.workers: dict[str, SimWorker] = {}
        self.loads: deque[LoadRun | LoadSampler] = deque()
        self.bad: set[str] = set()  # request ids that fail when executed
        self.blown: set[str] = set()  # optim_steps that use up their gradient and fail
        self.categories: dict[str, ErrorCategory] = {}  # of what is finished
        self.poison: set[str] = set()  # request ids that kill their worker
        self.passes: list[Execute] = []
        self.num_workers = 0
        self.num_replayed = 0

    # -- what tests do

    def handle(self, event: Event) -> None:
        self.now += 1.0
        for action in self.state.handle(event, self.now):
            match action:
                case SendCommand(worker_id, command):
                    if worker_id in self.workers:
                        self._sent(self.workers[worker_id], command)
                case Finish():
                    self._finished(action)
                case LoadRun() | LoadSampler():
                    self.loads.append(action)
                case RecordSnapshot():
                    self._recorded(action)
                case MarkRunClosed(run_id):
                    self.runs[run_id] = replace(self.runs[run_id], is_closed=True)

    def add_run(self, run: RunRow) -> RunRow:
        self.runs[run.spec.run_id] = run
        return run

    def submit(self, *rows: RequestRow) -> None:
        for row in rows:
            assert row.request_id not in self.rows
            self.rows[row.request_id] = row
            if row.state == "failed":
                self.finished[row.request_id] = "failed"
        self.handle(RequestsArrived(rows))

    def join(
        self,
        max_pass_tokens: int = 1000,
        max_sequences: int = 4,
        models: Sequence[str] = (MODEL,),
        role: WorkerRole = "both",
    ) -> SimWorker:
        self.num_workers += 1
        name = f"w{self.num_workers}"
        ready = WorkerReady(name, tuple(models), max_pass_tokens, max_sequences, role=role, knows_draining=True)
        worker = SimWorker(ready.worker_id, ready)
        self.workers[worker.worker_id] = worker
        self.handle(WorkerJoined(worker.worker_id, ready))
        return worker

    def kill(self, worker: SimWorker) -> None:
        del self.workers[worker.worker_id]
        self.handle(WorkerGone(worker.worker_id))

    def drain(self, worker: SimWorker) -> None:
        worker.is_draining, worker.stays = True, False
        self.handle(WorkerReported(worker.worker_id, WorkerDraining()))

    def ask_to_drain(self, worker: SimWorker, *, is_draining: bool) -> None:
        worker.is_draining = worker.stays = is_draining
        self.handle(DrainAsked(worker.ready.worker_id, is_draining))

    def can_do_all(self) -> bool:
        return all(any(worker.takes(side) for worker in self.workers.values()) for side in ("train", "sample"))

    def answer_load(self) -> None:
        load = self.loads.popleft()
        if isinstance(load, LoadSampler):
            spec = SamplerSpec(load.sampler_id, MODEL, f"adapters/{load.sampler_id}")
            self.handle(SamplerLoaded(load.sampler_id, spec))
            return
        run = self.runs.get(load.run_id)
        if run is None:
            self.handle(RunLoaded(load.run_id, None))
            return
        rows = {row.seq_id: row for row in self.rows.values() if row.run_id == load.run_id}
        ended = {seq for seq, row in rows.items() if row.request_id in self.finished}
        next_seq = 0
        while next_seq in ended:
            next_seq += 1
        log = [
            replace(rows[seq], state=self.finished[rows[seq].request_id])  # pyright: ignore[reportArgumentType]
            for seq in sorted(ended)
            if seq > run.snapshot_seq_id and self._has_changed_its_run(rows[seq])
        ]
        later = frozenset(seq for seq in ended if seq > next_seq)
        self.handle(RunLoaded(load.run_id, run, next_seq, later, tuple(log)))

    def step(self, worker: SimWorker) -> None:
        """The worker carries out its next command, or ends its oldest sample."""
        if worker.commands:
            self._carry_out(worker, worker.commands.popleft())
        elif worker.samples:
            request_id = next(iter(worker.samples))
            del worker.samples[request_id]
            worker.results_lane.append(SampleDone((self._outcome(request_id),)))

    def deliver(self, worker: SimWorker, *, saves_first: bool = False) -> None:
        lanes = [worker.saves_lane, worker.results_lane]
        for lane in lanes if saves_first else reversed(lanes):
            if lane:
                report = lane.popleft()
                if isinstance(report, ExecuteDone):
                    worker.unreported -= 1
                self.handle(WorkerReported(worker.worker_id, report))
                return

    def settle(self) -> None:
        """Let everything run to its end."""
        for _ in range(20_000):
            if self.loads:
                self.answer_load()
            elif busy := [worker for worker in self.workers.values() if worker.has_work()]:
                for worker in busy:
                    if worker.worker_id in self.workers:
                        self.step(worker)
                    if worker.worker_id in self.workers:
                        self.deliver(worker)
            elif self.state.wakes_at() < math.inf:
                self.now = max(self.now, self.state.wakes_at())
                self.handle(PauseOver())
            else:
                return
        raise AssertionError("the system does not come to rest")

    # -- what must hold

    def check_results(self) -> None:
        """Every done request saw exactly what the twin, running the same log in order, shows it."""
        for request_id, result in self.results.items():
            if self.finished.get(request_id) != "done":
                continue
            row = self.rows[request_id]
            if row.kind not in ("sample", "unload_model"):
                assert result == self.twin(row), request_id

    def twin(self, row: RequestRow) -> list[int]:
        return sorted(
            other.seq_id
            for other in self.rows.values()
            if other.run_id == row.run_id and self._has_changed_its_run(other) and other.seq_id <= row.seq_id
        )

    def _has_changed_its_run(self, row: RequestRow) -> bool:
        state = self.finished.get(row.request_id)
        if state not in ("done", "failed"):
            return False
        return changes_run(row.kind, state == "failed", self.categories.get(row.request_id, "user"))

    def check_no_idle_worker(self) -> None:
        """A worker with nothing to do means that no compatible work could start."""
        able = [worker for worker in self.workers.values() if worker.takes("train")]
        idle = [worker for worker in able if not worker.has_work() and not worker.unreported]
        if idle and not self.loads:
            assert not self.startable(), f"{idle[0].worker_id} is idle while {self.startable()} could start"

    def startable(self) -> list[str]:
        """Unfinished requests that no other request, and no worker but an idle one, has to come before."""
        held = {item.request_id for w in self.workers.values() for c in w.commands for item in _items(c)}
        held |= {request_id for w in self.workers.values() for request_id in w.samples}
        found: list[str] = []
        for row in self.rows.values():
            if row.request_id in self.finished or row.request_id in held or row.kind == "sample":
                continue
            before = [r for r in self.rows.values() if r.run_id == row.run_id and r.seq_id < row.seq_id]
            is_next = len(before) == row.seq_id and all(r.request_id in self.finished for r in before)
            homes = [w for w in self.workers.values() if w.holds(row.run_id)]
            if is_next and row.kind != "unload_model" and all(not w.has_work() and not w.unreported for w in homes):
                found.append(row.request_id)
        return found

    # -- workers and store

    def _sent(self, worker: SimWorker, command: Command) -> None:
        assert not isinstance(command, OpenRun | Execute) or worker.takes("train")
        assert not isinstance(command, Sample) or worker.takes("sample")
        worker.commands.append(command)
        if isinstance(command, Execute):
            self.passes.append(command)
            worker.unreported += 1
            assert worker.unreported <= 2 * len({row.tenant_id for row in self.rows.values()})  # two of each tenant
            self._check_pass(worker, command)

    def _check_pass(self, worker: SimWorker, command: Execute) -> None:
        rows = [self.rows[item.request_id] for item in command.items]
        assert rows
        assert {row.kind for row in rows} == {command.kind}
        assert len({row.base_model for row in rows}) == 1
        if command.kind in ("forward_backward", "forward"):
            assert len(rows) == 1 or sum(row.num_tokens for row in rows) <= worker.ready.max_pass_tokens
        else:
            assert len({row.run_id for row in rows}) == len(rows)
        for item in command.items:
            assert item.is_replay == (item.request_id in self.finished)

    def _carry_out(self, worker: SimWorker, command: Command) -> None:
        match command:
            case OpenRun(run, key, seq_id):
                assert seq_id == (self.snapshots[key][1] if key is not None else -1)
                applied, last = self.snapshots[key] if key is not None else ([], -1)
                worker.runs[run.run_id] = SimRun(list(applied), last)
            case CloseRun(run_id):
                del worker.runs[run_id]
            case SnapshotRun(run_id):
                run = worker.runs[run_id]
                key = f"snapshots/{run_id}/{run.last_seq}"
                self.snapshots[key] = (list(run.applied), run.last_seq)
                worker.saves_lane.append(RunSnapshotted(run_id, run.last_seq, key))
            case Execute(work_id, kind, items):
                if any(item.request_id in self.poison and not item.has_failed for item in items):
                    self.kill(worker)
                    return
                outcomes = tuple(self._apply(worker, item) for item in items)
                lane = worker.saves_lane if kind.startswith("save") else worker.results_lane
                lane.append(ExecuteDone(work_id, outcomes))
            case Sample(item):
                if item.request_id in self.poison:
                    self.kill(worker)
                    return
                self._check_room(worker, item.request_id)
                worker.samples[item.request_id] = max(1, self.rows[item.request_id].num_sequences)
            case SetTenantShares(tenant_shares):
                worker.tenant_shares = tenant_shares
            case Cancel(request_id):
                worker.samples.pop(request_id, None)
            case SetDraining():
                pass
            case Shutdown():
                assert worker.is_draining
                assert not worker.stays
                assert not worker.runs
                assert not worker.commands
                assert not worker.samples
                assert not worker.saves_lane
                late = [each.request_id for report in worker.results_lane for each in report.outcomes]
                assert set(late) <= self.finished.keys()  # cancelled while their report was under way
                self.kill(worker)
            case _:
                raise AssertionError(command)

    def _check_room(self, worker: SimWorker, request_id: str) -> None:
        """A worker is full at twice what it decodes, but each tenant may have its part of that, or one request."""
        row, most = self.rows[request_id], worker.ready.max_sequences
        by_tenant = Counter({row.tenant_id: 0})
        for each, number in worker.samples.items():
            by_tenant[self.rows[each].tenant_id] += number
        of_tenant = by_tenant[row.tenant_id] + max(1, row.num_sequences)
        is_full = by_tenant.total() >= most and by_tenant.total() + max(1, row.num_sequences) > 2 * most
        assert not is_full or by_tenant[row.tenant_id] == 0 or of_tenant * len(by_tenant) <= most

    def _apply(self, worker: SimWorker, item: WorkItem) -> Outcome:
        request_id = item.request_id
        row = self.rows[request_id]
        run = worker.runs[row.run_id]
        self.num_replayed += item.is_replay
        assert item.has_failed == (item.is_replay and self.finished[request_id] == "failed")
        run.last_seq = max(run.last_seq, row.seq_id)
        outcome = self._outcome(request_id)
        if item.has_failed or changes_run(row.kind, bool(outcome.error), outcome.category):
            run.applied.append(row.seq_id)
        if item.is_replay:
            assert run.applied == self.twin(row)
            return Outcome(request_id, busy_s=1.0)
        if outcome.error:
            return outcome
        self.results[request_id] = list(run.applied)
        return outcome

    def _outcome(self, request_id: str) -> Outcome:
        if request_id in self.bad:
            return Outcome(request_id, error="bad", category="user", busy_s=1.0)
        if request_id in self.blown:
            return Outcome(request_id, error="the gradient is dropped", category="server", busy_s=1.0)
        num_tokens = self.rows[request_id].num_tokens
        return Outcome(request_id, result_ref=f"result:{request_id}", num_tokens=num_tokens, busy_s=1.0)

    def _finished(self, action: Finish) -> None:
        request_id = action.request.request_id
        assert request_id in self.rows
        assert request_id not in self.finished, f"{request_id} finished twice"
        self.finished[request_id] = action.state
        self.categories[request_id] = action.outcome.category

    def _recorded(self, action: RecordSnapshot) -> None:
        run = self.runs[action.run_id]
        assert action.seq_id > run.snapshot_seq_id
        assert action.old_key == run.snapshot_key
        covered = [r for r in self.rows.values() if r.run_id == action.run_id and r.seq_id <= action.seq_id]
        assert len(covered) == action.seq_id + 1
        assert all(row.request_id in self.finished for row in covered)
        self.runs[action.run_id] = replace(run, snapshot_key=action.key, snapshot_seq_id=action.seq_id)


def _items(command: Command) -> Sequence[WorkItem]:
    match command:
        case Execute():
            return command.items
        case Sample():
            return (command.item,)
        case _:
            return ()
