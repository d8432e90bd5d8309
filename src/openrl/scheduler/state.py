"""The scheduler's decisions: one event in, the actions it leads to out. No clock, no I/O.

`handle` is replayable: the same events at the same times give the same actions. The parts:
`runs.py` (where runs live and what of them is safe), `run_queue.py` (order within a run),
`passes.py` (what shares a pass), `samples.py` (sample requests), `policy.py` (who goes next),
`fleet.py` (what each worker holds).
"""

from collections.abc import Mapping
from typing import assert_never

from openrl.rpc.messages import ExecuteDone, RunLost, RunSnapshotted, SampleDone
from openrl.scheduler.actions import Action
from openrl.scheduler.events import (
    Event,
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
from openrl.scheduler.fleet import Fleet, WorkerSlot
from openrl.scheduler.policy import FairShare
from openrl.scheduler.runs import Runs
from openrl.scheduler.samples import Samples


class SchedulerState:
    """Everything that waits or runs, and who runs it."""

    def __init__(self, max_replay_s: float, tenant_shares: Mapping[str, float] | None = None) -> None:
        self._fleet = Fleet(tenant_shares)
        self._runs = Runs(self._fleet, max_replay_s)
        self._samples = Samples(self._fleet)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Apply one event; return what must be done, in order."""
        self._fleet.now = now
        match event:
            case RequestsArrived(requests):
                self._runs.arrive([request for request in requests if request.run_id])
                self._samples.arrive([request for request in requests if request.kind == "sample"])
            case RequestCancelled(request_id):
                _ = self._samples.cancel(request_id) or self._runs.cancel(request_id)
            case RunLoaded():
                self._runs.load(event)
            case SamplerLoaded(sampler_id, spec):
                self._samples.load(sampler_id, spec)
            case WorkerJoined():
                self._worker_joined(event)
            case WorkerGone(worker_id):
                self._worker_gone(worker_id)
            case WorkerReported():
                self._worker_reported(event)
            case SessionClosed(session_id, run_ids):
                self._samples.cancel_session(session_id)
                self._runs.close(run_ids)
            case Tick():
                self._runs.tick()
            case _:
                assert_never(event)
        self._settle()
        return self._fleet.take_actions()

    def base_models(self) -> frozenset[str]:
        """The models that a connected worker serves."""
        return frozenset(model for slot in self._fleet.workers.values() for model in slot.ready.base_models)

    def _worker_joined(self, event: WorkerJoined) -> None:
        assert event.worker_id not in self._fleet.workers, f"worker {event.worker_id} joined twice"
        slot = WorkerSlot(event.worker_id, event.ready, FairShare(self._fleet.tenant_shares))
        self._fleet.workers[event.worker_id] = slot
        self._fleet.touch_worker(slot)
        self._fleet.touched_models.update(dict.fromkeys(event.ready.base_models))
        self._runs.worker_joined()

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
            case _:
                assert_never(event.report)

    def _settle(self) -> None:
        """Give out work until nothing that changed leads to more."""
        fleet = self._fleet
        while fleet.touched_models or fleet.touched_workers:
            models, fleet.touched_models = fleet.touched_models, {}
            for base_model in models:
                self._samples.dispatch(base_model)
            workers, fleet.touched_workers = fleet.touched_workers, {}
            for worker_id in workers:
                if worker_id in fleet.workers:
                    self._serve(fleet.workers[worker_id])

    def _serve(self, slot: WorkerSlot) -> None:
        """Fill the worker's passes; with suspects there, let it run empty and run them one by one."""
        while slot.suspects and not slot.running_alone and not slot.is_busy():
            suspect = next(iter(slot.suspects))
            del slot.suspects[suspect]
            part = self._runs.passes if suspect.kind == "run" else self._samples
            part.send_alone(slot, suspect.name)
            self._fleet.touched_models.update(dict.fromkeys(slot.ready.base_models))
        self._runs.passes.fill(slot)
