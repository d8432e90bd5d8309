"""The scheduler's decisions: one event in, the actions it leads to out. No clock, no I/O.

`handle` is replayable: the same events at the same times give the same actions. The parts:
`runs.py` (where runs live and what of them is safe), `run_queue.py` (order within a run),
`passes.py` (what shares a pass), `samples.py` (sample requests), `policy.py` (who goes next),
`quotas.py` (whose requests may start), `fleet.py` (what each worker holds).
"""

from collections.abc import Mapping
from typing import assert_never

from openrl.rpc.messages import ExecuteDone, RunLost, RunSnapshotted, SampleDone, SetDraining, Shutdown, WorkerDraining
from openrl.scheduler.actions import Action
from openrl.scheduler.events import (
    DrainAsked,
    Event,
    PauseOver,
    QuotasRead,
    RequestCancelled,
    RequestsArrived,
    RunLoaded,
    SamplerLoaded,
    SessionClosed,
    Tick,
    WorkerGone,
    WorkerJoined,
    WorkerReported,
)
from openrl.scheduler.figures import Figures
from openrl.scheduler.fleet import Fleet, WorkerSlot
from openrl.scheduler.policy import FairShare
from openrl.scheduler.runs import Runs
from openrl.scheduler.samples import Samples
from openrl.store.cluster import Pause, Side, WorkerStatus
from openrl.store.quotas import NO_LIMITS, WHOLE_TENANT, Limits


class SchedulerState:
    """Everything that waits or runs, and who runs it."""

    def __init__(
        self,
        max_replay_s: float,
        tenant_shares: Mapping[str, float] | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """`limits` are those of tenants that have none of their own."""
        self._fleet = Fleet(tenant_shares, limits)
        self._runs = Runs(self._fleet, max_replay_s)
        self._samples = Samples(self._fleet)

    def handle(self, event: Event, now: float, utc: float | None = None) -> list[Action]:
        """Apply one event; return what must be done, in order.

        `now` is of a clock that never jumps, `utc` what the calendar goes by: seconds since the epoch, unless `now` is.
        """
        self._fleet.now = now
        self._fleet.gate.begin(now, now if utc is None else utc)
        match event:
            case RequestsArrived(requests):
                self._runs.arrive([request for request in requests if request.run_id])
                self._samples.arrive([request for request in requests if request.kind == "sample"])
            case RequestCancelled(request_id):
                _ = self._samples.cancel(request_id) or self._runs.cancel(request_id)
            case RunLoaded():
                self._runs.load(event)
            case SamplerLoaded():
                self._samples.load(event)
            case WorkerJoined():
                self._worker_joined(event)
            case WorkerGone(worker_id):
                self._worker_gone(worker_id)
            case WorkerReported():
                self._worker_reported(event)
            case DrainAsked():
                self._drain_asked(event)
            case SessionClosed(session_id, run_ids):
                self._samples.cancel_session(session_id)
                self._runs.close(run_ids)
            case QuotasRead():
                self._quotas_read(event)
            case PauseOver():
                pass  # that it is so late is all
            case Tick():
                self._runs.tick()
            case _:
                assert_never(event)
        self._settle()
        return self._fleet.take_actions()

    def base_models(self) -> frozenset[str]:
        """The models that connected workers train and sample."""
        slots = self._fleet.workers.values()
        models = {model for slot in slots for model in slot.ready.base_models}
        sides: tuple[Side, ...] = ("train", "sample")
        return frozenset(model for model in models if all(any(s.takes(model, side) for s in slots) for side in sides))

    def workers(self) -> tuple[WorkerStatus, ...]:
        """Who is connected, in order of name."""
        return tuple(sorted((slot.status() for slot in self._fleet.workers.values()), key=lambda each: each.name))

    def wakes_at(self) -> float:
        """When a PauseOver should come, if nothing happens before; infinite if it need not."""
        return self._fleet.gate.wakes_at()

    def pauses(self) -> dict[str, Pause]:
        """Why requests wait for their quotas, as `SchedulerStatus` tells it."""
        return self._fleet.gate.pauses()

    def figures(self, now: float, utc: float) -> Figures:
        """How much there is of what; `now` and `utc` as for `handle`."""
        figures = Figures(len(self._fleet.workers), self._runs.num_runs(), unsaved=self._runs.unsaved(now))
        figures.add_waiting(self._runs.waiting(), utc)
        figures.add_waiting(self._samples.waiting(), utc)
        return figures

    def queue_wait_s(self, now: float, utc: float) -> float:
        """How long the first has waited of what could be sent if a worker had room; `now` and `utc` as for `handle`.

        What waits for a quota, for a model that no worker has, or for its own run's requests is not among it.
        """
        models, pauses = self.base_models(), self.pauses()
        paused = {key.partition("/")[0] for key in pauses}
        ready = [
            *self._runs.waits(now, utc),
            *((request, utc - request.created_at) for request in self._samples.waiting()),
        ]
        waits = [wait_s for row, wait_s in ready if row.tenant_id not in paused and row.base_model in models]
        return round(max(0.0, *waits, 0.0), 1)

    def _quotas_read(self, event: QuotasRead) -> None:
        gate = self._fleet.gate
        gate.set_quotas(event.quotas)
        gate.set_used(event.used_this_month, event.used_today)
        tenants = (row for row in event.quotas if row.project_id == WHOLE_TENANT)
        self._fleet.set_weights({row.tenant_id: row.weight for row in tenants if row.weight is not None})

    def _worker_joined(self, event: WorkerJoined) -> None:
        assert event.worker_id not in self._fleet.workers, f"worker {event.worker_id} joined twice"
        slot = WorkerSlot(event.worker_id, event.ready, FairShare(self._fleet.tenant_shares))
        slot.is_draining = slot.stays = event.ready.is_draining
        self._fleet.add_worker(slot)
        self._use(slot)

    def _worker_gone(self, worker_id: str) -> None:
        slot = self._fleet.workers.pop(worker_id, None)
        if slot is not None:
            self._samples.worker_gone(slot)
            self._runs.worker_gone(slot)

    def _worker_reported(self, event: WorkerReported) -> None:
        slot = self._fleet.workers.get(event.worker_id)
        if slot is None:
            return
        match event.report:
            case SampleDone(outcomes):
                self._samples.done(slot, outcomes)
            case ExecuteDone():
                self._runs.report(slot, event.report)
                self._fleet.touched_models.update(dict.fromkeys(slot.ready.base_models))
            case RunSnapshotted() | RunLost():
                self._runs.report(slot, event.report)
                self._fleet.touch_worker(slot)
            case WorkerDraining(stays):
                self._drain(slot, stays=stays)
            case _:
                assert_never(event.report)

    def _drain_asked(self, event: DrainAsked) -> None:
        for slot in self._fleet.workers.values():
            is_ending = slot.is_draining and not slot.stays
            if slot.ready.worker_id != event.name or is_ending or slot.is_draining == event.is_draining:
                continue
            if slot.ready.knows_draining:
                self._fleet.send(slot.worker_id, SetDraining(event.is_draining))
            if event.is_draining:
                self._drain(slot, stays=True)
            else:
                slot.is_draining = slot.stays = False
                self._use(slot)

    def _drain(self, slot: WorkerSlot, *, stays: bool) -> None:
        slot.is_draining, slot.stays = True, stays
        self._samples.drain(slot)
        self._runs.drain(slot)
        self._fleet.touch_worker(slot)

    def _use(self, slot: WorkerSlot) -> None:
        """Let it take what waits for a worker."""
        self._fleet.touch_worker(slot)
        self._fleet.touched_models.update(dict.fromkeys(slot.ready.base_models))
        self._runs.worker_joined()

    def _settle(self) -> None:
        """Give out work until nothing that changed leads to more."""
        fleet = self._fleet
        self._pass_gate()
        while fleet.touched_models or fleet.touched_workers:
            models, fleet.touched_models = fleet.touched_models, {}
            for base_model in models:
                self._samples.dispatch(base_model)
            workers, fleet.touched_workers = fleet.touched_workers, {}
            for worker_id in workers:
                if worker_id in fleet.workers:
                    self._serve(fleet.workers[worker_id])
            self._pass_gate()

    def _pass_gate(self) -> None:
        """Hold back what no device time is left for, and bring forward what may start."""
        gate = self._fleet.gate
        for tenant_id in gate.take_used_up():
            self._samples.hold_back(tenant_id)
            self._runs.hold_back(tenant_id)
        for request_id in gate.take_news():
            _ = self._samples.granted(request_id) or self._runs.granted(request_id)

    def _serve(self, slot: WorkerSlot) -> None:
        """Fill the worker's passes; with suspects there, let it run empty and run them one by one."""
        if slot.is_draining:
            self._let_go(slot)
            return
        while slot.suspects and not slot.running_alone and not slot.is_busy():
            suspect = next(iter(slot.suspects))
            del slot.suspects[suspect]
            part = self._runs.passes if suspect.kind == "run" else self._samples
            part.send_alone(slot, suspect.name)
            self._fleet.touched_models.update(dict.fromkeys(slot.ready.base_models))
        self._runs.passes.fill(slot)

    def _let_go(self, slot: WorkerSlot) -> None:
        """A worker that is to end may do so once nothing is there."""
        if not (slot.runs or slot.is_busy() or slot.is_shut_down or slot.stays):
            slot.is_shut_down = True
            self._fleet.send(slot.worker_id, Shutdown())
