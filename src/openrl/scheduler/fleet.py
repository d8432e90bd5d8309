"""The workers, what each of them holds, and the actions that one event leads to."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from openrl.errors import ErrorCategory
from openrl.protocol.runs import SamplerSpec, TrainingKind
from openrl.rpc.messages import Command, Execute, Outcome, SetTenantShares, WorkerReady, WorkItem
from openrl.scheduler.actions import Action, Finish, SendCommand
from openrl.scheduler.policy import MAX_LOSSES, FairQueue, FairShare
from openrl.scheduler.quotas import QuotaGate
from openrl.store.base import RequestRow
from openrl.store.cluster import Side, WorkerStatus
from openrl.store.quotas import NO_LIMITS, UNBOUNDED, Limits

_ADAPTERS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class SentItem:
    """A training request that a worker holds."""

    run_id: str
    request: RequestRow
    is_replay: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """A request that may have killed its workers: a sample's id, or the run whose head it is."""

    kind: Literal["run", "sample"]
    name: str


@dataclass(slots=True)
class WorkerSlot:
    """One connected worker and everything sent to it that has not ended."""

    worker_id: str
    ready: WorkerReady
    share: FairShare  # between tenants, for training
    queues: dict[tuple[str, TrainingKind], FairQueue] = field(
        default_factory=dict[tuple[str, TrainingKind], FairQueue]
    )  # runs whose head can be sent, by base model and kind
    runs: dict[str, None] = field(default_factory=dict[str, None])  # resident here
    executing: dict[int, tuple[SentItem, ...]] = field(default_factory=dict[int, tuple[SentItem, ...]])
    samples: dict[str, RequestRow] = field(default_factory=dict[str, RequestRow])
    sequences: Counter[str] = field(default_factory=Counter[str])  # of all sample requests here, by tenant
    num_sequences: int = 0
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict[str, None])  # seen, latest last
    suspects: dict[Suspect, None] = field(default_factory=dict[Suspect, None])
    running_alone: str = ""  # request id of the suspect that has the worker to itself
    is_draining: bool = False  # the worker is about to end: it gets nothing new, and its runs go elsewhere
    stays: bool = False  # it is drained, but does not end
    is_shut_down: bool = False  # it was told that it may

    def takes(self, base_model: str, side: Side) -> bool:
        """Whether new work of this kind may go here at all."""
        is_of_role = self.ready.role in (side, "both")
        return is_of_role and base_model in self.ready.base_models and not self.is_draining

    def status(self) -> WorkerStatus:
        """What others are told of it."""
        ready, num_passes = self.ready, sum(map(len, self.executing.values()))
        is_empty = not (self.runs or self.is_busy())
        return WorkerStatus(
            ready.worker_id,
            ready.pool,
            ready.role,
            ready.base_models,
            "working" if not self.is_draining else "drained" if is_empty else "draining",
            len(self.runs),
            num_passes + len(self.samples),
        )

    def is_busy(self) -> bool:
        """Whether the worker has anything to report."""
        return bool(self.executing or self.samples)

    def is_quarantined(self) -> bool:
        """Whether the worker is emptied, for a suspect or for good, or runs a suspect: nothing else is sent."""
        return bool(self.suspects or self.running_alone or self.is_draining)

    def queue(self, key: tuple[str, TrainingKind]) -> FairQueue:
        """The queue of runs whose head is of this base model and kind."""
        if key not in self.queues:
            self.queues[key] = FairQueue(self.share)
        return self.queues[key]

    def add_sample(self, request: RequestRow, adapter_key: str | None) -> None:
        """A sample request was sent here."""
        self.samples[request.request_id] = request
        self.sequences[request.tenant_id] += sequences_of(request)
        self.num_sequences += sequences_of(request)
        if adapter_key is not None:
            self.adapters[adapter_key] = None
            self.adapters.move_to_end(adapter_key)
            if len(self.adapters) > _ADAPTERS_REMEMBERED:
                self.adapters.popitem(last=False)

    def remove_sample(self, request_id: str) -> None:
        """A sample request ended or was cancelled."""
        request = self.samples.pop(request_id)
        self.sequences[request.tenant_id] -= sequences_of(request)
        self.num_sequences -= sequences_of(request)
        if not self.sequences[request.tenant_id]:
            del self.sequences[request.tenant_id]
        self.release(request_id)

    def release(self, request_id: str) -> None:
        """A request ended; if it was a suspect running alone, others may come."""
        if self.running_alone == request_id:
            self.running_alone = ""


class Fleet:
    """Shared by the parts of the scheduler's state: they read the workers here and say here what to do."""

    def __init__(self, tenant_shares: Mapping[str, float] | None = None, limits: Limits = NO_LIMITS) -> None:
        self._configured_shares = dict(tenant_shares or {})
        self.tenant_shares = dict(self._configured_shares)  # changed in place: others look into it
        self.gate = QuotaGate(limits)
        self.now = 0.0  # of the event being handled
        self.workers: dict[str, WorkerSlot] = {}
        self.touched_workers: dict[str, None] = {}  # may be able to take something
        self.touched_models: dict[str, None] = {}  # samples of these may find room
        self._actions: list[Action] = []
        self._losses: dict[str, int] = {}  # worker losses by request id
        self._next_work_id = 0

    def take_actions(self) -> list[Action]:
        """What must be done, in order; the list starts anew."""
        actions, self._actions = self._actions, []
        return actions

    def act(self, action: Action) -> None:
        """Something must be done at the edge."""
        self._actions.append(action)

    def send(self, worker_id: str, command: Command) -> None:
        """Give a worker a command."""
        self._actions.append(SendCommand(worker_id, command))

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Tenants with these weights share by them, here and in the workers; the others as configured."""
        shares = {**self._configured_shares, **weights}
        if shares != self.tenant_shares:
            self.tenant_shares.clear()
            self.tenant_shares.update(shares)
            for worker_id in self.workers:
                self.send(worker_id, SetTenantShares(shares))

    def add_worker(self, slot: WorkerSlot) -> None:
        """A worker joined; it knows the configured shares."""
        self.workers[slot.worker_id] = slot
        if self.tenant_shares != self._configured_shares:
            self.send(slot.worker_id, SetTenantShares(dict(self.tenant_shares)))

    def execute(self, slot: WorkerSlot, kind: TrainingKind, items: Iterable[SentItem]) -> None:
        """Send training requests of one kind as one pass."""
        sent = tuple(items)
        self._next_work_id += 1
        slot.executing[self._next_work_id] = sent
        work = tuple(work_item(item.request, is_replay=item.is_replay) for item in sent)
        self.send(slot.worker_id, Execute(self._next_work_id, kind, work))

    def finish(self, request: RequestRow, outcome: Outcome, base_model: str) -> None:
        """A request ended as its worker says."""
        self._losses.pop(request.request_id, None)
        self.gate.end(request, outcome)
        bound = self.gate.stored_bound(request) if outcome.checkpoint is not None else UNBOUNDED
        self.act(Finish(request, "failed" if outcome.error else "done", outcome, base_model, bound))

    def fail(self, request: RequestRow, error: str, category: ErrorCategory) -> None:
        """A request ends without having been run."""
        self.finish(request, Outcome(request.request_id, error=error, category=category), request.base_model)

    def cancel(self, request: RequestRow) -> None:
        """A request ends because nobody wants it."""
        self._losses.pop(request.request_id, None)
        outcome = Outcome(request.request_id, error="cancelled", category="user")
        self.gate.end(request, outcome)
        self.act(Finish(request, "cancelled", outcome, request.base_model))

    def survives_loss(self, request: RequestRow) -> bool:
        """Count a worker loss against a request that was there; at MAX_LOSSES it is failed: False."""
        losses = self._losses.get(request.request_id, 0) + 1
        self._losses[request.request_id] = losses
        if losses < MAX_LOSSES:
            return True
        self.fail(request, f"the worker was lost {losses} times while it held this request", "server")
        return False

    def is_suspect(self, request: RequestRow) -> bool:
        """Whether one more worker loss fails the request: it then runs alone, so that no other is blamed."""
        return self._losses.get(request.request_id, 0) >= MAX_LOSSES - 1

    def touch_worker(self, slot: WorkerSlot) -> None:
        """A worker's room or queues changed."""
        self.touched_workers[slot.worker_id] = None


def work_item(request: RequestRow, sampler: SamplerSpec | None = None, *, is_replay: bool = False) -> WorkItem:
    """The request as the worker needs it."""
    return WorkItem(
        request_id=request.request_id,
        tenant_id=request.tenant_id,
        kind=request.kind,
        payload_ref=request.payload_ref,
        run_id=request.run_id,
        seq_id=request.seq_id,
        sampler=sampler,
        is_replay=is_replay,
        has_failed=is_replay and request.state == "failed",
        created_at=request.created_at,
        trace_context=None if is_replay else request.trace_context,
    )


def sequences_of(request: RequestRow) -> int:
    """Sequences that a sample request decodes; at least one."""
    return max(1, request.num_sequences)
