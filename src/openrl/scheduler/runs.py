"""Brings runs to workers and away from them: loading, placing, replaying, saving, closing, losing."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import assert_never

from openrl.errors import ErrorCategory
from openrl.rpc.messages import CloseRun, ExecuteDone, OpenRun, Outcome, RunLost, RunSnapshotted, SnapshotRun
from openrl.scheduler.actions import LoadRun, MarkRunClosed, RecordSnapshot
from openrl.scheduler.events import RunLoaded
from openrl.scheduler.figures import Unsaved
from openrl.scheduler.fleet import Fleet, SentItem, WorkerSlot
from openrl.scheduler.passes import Passes
from openrl.scheduler.policy import MAX_LOSSES, choose_run_worker
from openrl.scheduler.run_queue import RunQueue
from openrl.store.base import RequestRow

MAX_SNAPSHOT_FAILURES = 3
SNAPSHOT_RETRY_S = 30.0
IDLE_SNAPSHOT_S = 60.0
"""An idle run is saved after this long, so that its payloads can be freed."""


class Runs:
    """All runs that have something waiting or live on a worker."""

    def __init__(self, fleet: Fleet, max_replay_s: float) -> None:
        self._fleet = fleet
        self._max_replay_s = max_replay_s
        self._runs: dict[str, RunQueue] = {}
        self._places: dict[str, tuple[str, int]] = {}  # request id -> run and number, while unfinished
        self._unplaced: dict[str, None] = {}  # loaded runs that no worker could take
        self.passes = Passes(fleet, self._runs)

    def arrive(self, requests: Sequence[RequestRow]) -> None:
        """Training requests were committed."""
        changed: dict[str, RunQueue] = {}
        for request in requests:
            run = self._runs.setdefault(request.run_id, RunQueue(request.run_id))
            changed[request.run_id] = run
            if run.accept(request):
                self._places[request.request_id] = (request.run_id, request.seq_id)
        for run in changed.values():
            self._advance(run)

    def load(self, loaded: RunLoaded) -> None:
        """A run's durable state was read."""
        run = self._runs.get(loaded.run_id)
        if run is None or not run.is_loading:
            return
        if loaded.run is not None:
            self._fleet.gate.note_project(loaded.run.session_id, loaded.project_id)
        for request in run.load(loaded, self._fleet.now):
            self._places.pop(request.request_id, None)
        if loaded.run is None or loaded.run.is_closed:
            self._refuse(run, "the run is closed" if loaded.run else "there is no such run", "user")
        else:
            self._advance(run)

    def cancel(self, request_id: str) -> bool:
        """Drop a waiting request; one that a worker has is left to end. False if it is not ours."""
        place = self._places.get(request_id)
        if place is None:
            return False
        run_id, seq_id = place
        run = self._runs[run_id]
        request = run.waiting.get(seq_id)
        if request is not None and request.request_id == request_id:
            del run.waiting[seq_id]
            del self._places[request_id]
            run.mark_finished(seq_id)
            self._fleet.cancel(request)
            self._advance(run)
        return True

    def granted(self, request_id: str) -> bool:
        """A request that its quotas held back may start; False if it is not ours."""
        place = self._places.get(request_id)
        if place is None:
            return False
        run = self._runs[place[0]]
        if run.worker_id is not None:
            self.passes.refresh(run)
        return True

    def hold_back(self, tenant_id: str) -> None:
        """What the tenant's runs have ready to be sent asks for leave again."""
        for run in self._runs.values():
            if run.queued_in is not None and run.row is not None and run.row.spec.tenant_id == tenant_id:
                head = run.head()
                assert head is not None, f"run {run.run_id} is queued without a head"
                self.passes.withdraw(run)
                if not head[1]:
                    self._fleet.gate.revoke(head[0])
                self.passes.refresh(run)

    def num_runs(self) -> int:
        """Runs that have something waiting, or are on a worker."""
        return len(self._runs)

    def waiting(self) -> Iterator[RequestRow]:
        """Requests that no worker has."""
        for run in self._runs.values():
            yield from run.waiting.values()

    def waits(self, now: float, utc: float) -> Iterator[tuple[RequestRow, float]]:
        """The next request of each run of which no worker has any, and how long it has been the next."""
        for run in self._runs.values():
            head = None if run.sent else run.head()
            if head is not None and not head[1]:
                yield head[0], min(utc - head[0].created_at, now - run.changed_at)

    def unsaved(self, now: float) -> dict[str, Unsaved]:
        """By worker, what would be lost with it and done again."""
        found = {worker_id: Unsaved() for worker_id in self._fleet.workers}
        for run in self._runs.values():
            if run.worker_id is not None and run.unsaved_at:
                there = found[run.worker_id]
                there.age_s = max(there.age_s, now - min(run.unsaved_at.values()))
                there.replay_s = max(there.replay_s, run.unsaved_total_s)
        return found

    def close(self, run_ids: Sequence[str]) -> None:
        """Finish what can be finished of these runs, save and close them."""
        for run_id in run_ids:
            run = self._runs.setdefault(run_id, RunQueue(run_id))
            run.is_closing = True
            self._advance(run)

    def worker_joined(self) -> None:
        """Place the runs that found no worker: one has come, or may be used again."""
        unplaced, self._unplaced = self._unplaced, {}
        for run_id in unplaced:
            if run_id in self._runs:
                self._advance(self._runs[run_id])

    def worker_gone(self, slot: WorkerSlot) -> None:
        """Take back what a lost worker had; call after it has left the fleet."""
        for run_id in slot.runs:
            run = self._runs[run_id]
            run.num_replay_losses += bool(run.replaying)
            run.queued_in, run.queued_head, run.lost_reason = None, "", ""
            for request in run.leave_worker():
                self._fleet.gate.revoke(request)
                if not self._fleet.survives_loss(request):
                    self._drop(run, request)
            if run.num_replay_losses >= MAX_LOSSES:
                self._refuse(run, f"the worker was lost {MAX_LOSSES} times while it replayed this run", "server")
            else:
                self._advance(run)

    def drain(self, slot: WorkerSlot) -> None:
        """The worker is about to end: save its runs and take them away."""
        for run_id in list(slot.runs):
            self._advance(self._runs[run_id])

    def report(self, slot: WorkerSlot, report: ExecuteDone | RunSnapshotted | RunLost) -> None:
        """A worker says how training commands ended."""
        match report:
            case ExecuteDone():
                self._execute_done(slot, report)
            case RunSnapshotted(run_id):
                if run_id in slot.runs:
                    run = self._runs[run_id]
                    run.snapshot_is_out = False
                    run.num_snapshot_failures = 0
                    run.snapshot_pending = report
                    self._advance(run)
            case RunLost(run_id, error):
                if run_id in slot.runs:
                    self._run_lost(self._runs[run_id], error)
            case _:
                assert_never(report)

    def tick(self) -> None:
        """Save runs that have been idle for a while; retry saves that failed."""
        for run in list(self._runs.values()):
            if run.unsaved_s and not run.is_in_flight():
                run.snapshot_due |= self._fleet.now - run.changed_at > IDLE_SNAPSHOT_S
                self._advance(run)

    def _advance(self, run: RunQueue) -> None:
        """Do whatever the run's state allows next."""
        if run.is_loading:
            return
        if (run.lost_reason or self._may_move(run)) and not run.is_in_flight():
            self._detach(run)
        if run.row is None:
            self._load_or_forget(run)
            return
        self._record_snapshot(run)
        if run.worker_id is None and (run.head() is not None or run.waiting):
            self._place(run)
        if run.worker_id is not None:
            self._snapshot_if_due(run)
            self.passes.refresh(run)
        if run.is_closing and not run.lost_reason and run.is_drained():
            self._close_drained(run)

    def _load_or_forget(self, run: RunQueue) -> None:
        if run.waiting or run.is_closing:
            run.is_loading = True
            self._fleet.act(LoadRun(run.run_id))
        else:
            del self._runs[run.run_id]

    def _place(self, run: RunQueue) -> None:
        assert run.row is not None
        base_model = run.row.spec.base_model
        candidates = [slot for slot in self._fleet.workers.values() if slot.takes(base_model, "train")]
        loads = [(slot.ready, slot.worker_id, len(slot.runs)) for slot in candidates]
        worker_id = choose_run_worker(loads, base_model)
        if worker_id is None:
            self._unplaced[run.run_id] = None
            return
        run.worker_id = worker_id
        self._fleet.workers[worker_id].runs[run.run_id] = None
        self._fleet.send(worker_id, OpenRun(run.row.spec, run.row.snapshot_key, run.row.snapshot_seq_id))

    def _snapshot_if_due(self, run: RunQueue) -> None:
        if run.replay or run.replaying or not run.unsaved_s or run.lost_reason:
            return
        if run.snapshot_due or run.unsaved_total_s > self._max_replay_s or self._is_on_draining_worker(run):
            self._snapshot(run)

    def _is_on_draining_worker(self, run: RunQueue) -> bool:
        return run.worker_id is not None and self._fleet.workers[run.worker_id].is_draining

    def _may_move(self, run: RunQueue) -> bool:
        """Whether the run's worker is about to end and nothing is gained by staying there."""
        if not self._is_on_draining_worker(run):
            return False
        self._record_snapshot(run)
        can_be_saved = not run.replay and not run.num_snapshot_failures
        return not (run.unsaved_s and can_be_saved)

    def _snapshot(self, run: RunQueue) -> None:
        if run.snapshot_is_out or run.snapshot_pending is not None or self._fleet.now < run.snapshot_not_before:
            return
        assert run.worker_id is not None
        run.snapshot_is_out = True
        run.snapshot_due = False
        self._fleet.send(run.worker_id, SnapshotRun(run.run_id))

    def _record_snapshot(self, run: RunQueue) -> None:
        """Record a durable snapshot once every number it covers has finished.

        Recording it earlier could hide a request that has no result yet from the next replay.
        """
        saved = run.snapshot_pending
        if saved is None or saved.seq_id >= run.next_seq:
            return
        assert run.row is not None
        run.snapshot_pending = None
        if saved.seq_id <= run.row.snapshot_seq_id:
            return  # from before the run was opened anew
        run.mark_saved(saved.seq_id)
        self._fleet.act(RecordSnapshot(run.run_id, saved.seq_id, saved.key, run.row.snapshot_key, saved.size_bytes))
        run.row = replace(run.row, snapshot_key=saved.key, snapshot_seq_id=saved.seq_id)

    def _close_drained(self, run: RunQueue) -> None:
        """Fail what waits behind a missing number, save, answer the unload, close: one step a call."""
        assert run.row is not None
        for request in list(run.waiting.values()):
            self._drop(run, request)
            self._fleet.fail(request, f"the run was closed before request {run.next_seq} arrived", "user")
        if run.unsaved_s:
            self._snapshot(run)
        elif run.unload is None:
            row = run.row
            self._fleet.act(MarkRunClosed(run.run_id, row.spec.tenant_id, row.session_id, row.snapshot_key))
            self._forget(run)

    def _execute_done(self, slot: WorkerSlot, report: ExecuteDone) -> None:
        items = slot.executing.pop(report.work_id, None)
        if items is None:
            return
        self._fleet.touch_worker(slot)
        changed: dict[str, RunQueue] = {}
        for item, outcome in zip(items, report.outcomes, strict=True):
            changed[item.run_id] = self._runs[item.run_id]
            self._item_done(slot, item, outcome)
        for run in changed.values():
            self._advance(run)

    def _item_done(self, slot: WorkerSlot, item: SentItem, outcome: Outcome) -> None:
        run, request = self._runs[item.run_id], item.request
        run.changed_at = self._fleet.now
        if item.is_replay:
            run.mark_replayed(request, outcome.busy_s)
            if outcome.error and not run.lost_reason:
                self._give_up(run, f"replay of request {request.seq_id} failed: {outcome.error}")
            return
        slot.release(request.request_id)
        run.mark_done(request, outcome)
        if request is run.unload:
            run.unload = None
        self._places.pop(request.request_id, None)
        assert run.row is not None
        self._fleet.finish(request, outcome, run.row.spec.base_model)

    def _run_lost(self, run: RunQueue, error: str) -> None:
        """A run that could not be opened or rebuilt is given up; a snapshot that failed is tried again later."""
        if run.snapshot_is_out and run.num_snapshot_failures < MAX_SNAPSHOT_FAILURES:
            run.snapshot_is_out = False
            run.num_snapshot_failures += 1
            run.snapshot_not_before = self._fleet.now + SNAPSHOT_RETRY_S
            return
        self._give_up(run, error)
        self._advance(run)

    def _give_up(self, run: RunQueue, error: str) -> None:
        """Fail what waits; the run is opened anew for the next request, once nothing of it is in flight."""
        run.lost_reason = error
        run.replay.clear()
        self.passes.withdraw(run)
        self._fail_waiting(run, error, "server")

    def _refuse(self, run: RunQueue, error: str, category: ErrorCategory) -> None:
        """Fail what waits of a run that is on no worker, and forget the run."""
        self._fail_waiting(run, error, category)
        self._forget(run)

    def _fail_waiting(self, run: RunQueue, error: str, category: ErrorCategory) -> None:
        unload = [run.unload] if run.unload is not None and run.unload.seq_id not in run.sent else []
        for request in [*run.waiting.values(), *unload]:
            self._drop(run, request)
            self._fleet.fail(request, error, category)
        run.is_closing = False

    def _drop(self, run: RunQueue, request: RequestRow) -> None:
        """A request that is not on a worker ends: step over it."""
        self._places.pop(request.request_id, None)
        if request is run.unload:
            run.unload = None
        else:
            run.waiting.pop(request.seq_id, None)
            run.mark_finished(request.seq_id)

    def _detach(self, run: RunQueue) -> None:
        self._leave(run)
        run.leave_worker()
        run.lost_reason = ""

    def _forget(self, run: RunQueue) -> None:
        self._leave(run)
        del self._runs[run.run_id]

    def _leave(self, run: RunQueue) -> None:
        self.passes.withdraw(run)
        if run.worker_id is not None:
            del self._fleet.workers[run.worker_id].runs[run.run_id]
            self._fleet.send(run.worker_id, CloseRun(run.run_id))
