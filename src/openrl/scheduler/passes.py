"""Fills a worker's passes: picks the next kind and tenant, then packs what else fits."""

from openrl.protocol.runs import TrainingKind
from openrl.scheduler.fleet import Fleet, SentItem, Suspect, WorkerSlot
from openrl.scheduler.policy import MAX_EXECUTES, MAX_MISFITS, MAX_NEWCOMER_EXECUTES, RIDING_KINDS, PassBudget
from openrl.scheduler.run_queue import RunQueue
from openrl.store.base import RequestRow


class Passes:
    """Keeps each resident run in the queue of its head's kind and sends Executes from there."""

    def __init__(self, fleet: Fleet, runs: dict[str, RunQueue]) -> None:
        self._fleet = fleet
        self._runs = runs

    def refresh(self, run: RunQueue) -> None:
        """Put a resident run into the queue that its head belongs to, or into none."""
        slot = self._fleet.workers[_worker_of(run)]
        head = None if run.lost_reason else run.head()
        if head is None:
            self.withdraw(run)
            return
        request, is_replay = head
        if not is_replay and not self._fleet.gate.ask(request):
            self.withdraw(run)
        elif not is_replay and self._fleet.is_suspect(request):
            self.withdraw(run)
            slot.suspects[Suspect("run", run.run_id)] = None
            self._fleet.touch_worker(slot)
        elif run.queued_head != request.request_id:
            self.withdraw(run)
            self._enqueue(slot, run, request)

    def withdraw(self, run: RunQueue) -> None:
        """Take a run out of its worker's queues."""
        if run.queued_in is not None and run.worker_id is not None:
            self._fleet.workers[run.worker_id].queue(run.queued_in).discard(run.run_id)
        run.queued_in = None
        run.queued_head = ""

    def fill(self, slot: WorkerSlot) -> None:
        """Send passes until the worker has enough or nothing is ready."""
        while not slot.is_quarantined() and len(slot.executing) < MAX_EXECUTES:
            fairest = _fairest(slot)
            if fairest is None:
                return
            run_id, key = fairest
            slot.share.serve(_tenant_of(self._runs[run_id]))
            self._fleet.execute(slot, key[1], self._collect(slot, key))
        self._fill_for_newcomers(slot)

    def _fill_for_newcomers(self, slot: WorkerSlot) -> None:
        """A full worker gets one request more of the fairest next tenants that have nothing there: they go ahead there.

        And what comes after a gradient, so that these tenants do not wait twice. Of nobody else, so that the shares of
        tenants who always have work hold. They share a pass, and those who come while MAX_NEWCOMER_EXECUTES are there
        share the next: many tenants with one request each would otherwise never be packed.
        """
        while not slot.is_quarantined() and len(slot.executing) < MAX_EXECUTES + MAX_NEWCOMER_EXECUTES:
            fairest = _fairest(slot)
            if fairest is None or not self._is_newcomer(slot, *fairest):
                return
            run_id, key = fairest
            slot.share.serve(_tenant_of(self._runs[run_id]))
            self._fleet.execute(slot, key[1], self._collect(slot, key, of_newcomers=True))

    def _is_newcomer(self, slot: WorkerSlot, run_id: str, key: tuple[str, TrainingKind]) -> bool:
        num_there = _num_executes_of(slot, _tenant_of(self._runs[run_id]))
        return num_there < (1 if key[1] in RIDING_KINDS else MAX_EXECUTES)

    def send_alone(self, slot: WorkerSlot, run_id: str) -> None:
        """Send a run's head as the only thing on an empty worker, if it is still suspect."""
        run = self._runs.get(run_id)
        if run is None or run.worker_id != slot.worker_id:
            return
        head = None if run.lost_reason else run.head()
        if head is None or head[1] or not self._fleet.is_suspect(head[0]):
            self.refresh(run)
            return
        slot.running_alone = head[0].request_id
        self._fleet.execute(slot, _kind_of(head[0]), [self._take(slot, run)])

    def _enqueue(self, slot: WorkerSlot, run: RunQueue, request: RequestRow) -> None:
        assert run.row is not None
        run.queued_in = (run.row.spec.base_model, _kind_of(request))
        run.queued_head = request.request_id
        slot.queue(run.queued_in).push(_tenant_of(run), request.position, run.run_id)
        self._fleet.touch_worker(slot)

    def _collect(self, slot: WorkerSlot, key: tuple[str, TrainingKind], of_newcomers: bool = False) -> list[SentItem]:
        """The requests of one pass; the fairest next one always, then others while they fit.

        `of_newcomers`: one request of each tenant, up to the first that is none.
        """
        queue = slot.queue(key)
        budget = PassBudget(key[1], slot.ready.max_pass_tokens)
        items: list[SentItem] = []
        aboard: set[str] = set()  # runs
        tenants: set[str] = set()
        misfits: list[RunQueue] = []
        while not budget.is_full() and len(misfits) < MAX_MISFITS and (run_id := queue.pop()) is not None:
            run = self._runs[run_id]
            run.queued_in, run.queued_head = None, ""
            head = run.head()
            assert head is not None, f"run {run_id} was queued without a head"
            if of_newcomers and (_tenant_of(run) in tenants or not self._is_newcomer(slot, run_id, key)):
                misfits.append(run)
                break
            is_second = run_id in aboard and key[1] not in RIDING_KINDS
            if is_second or not budget.fits(head[0].num_tokens):
                misfits.append(run)
                continue
            aboard.add(run_id)
            tenants.add(_tenant_of(run))
            budget.add(head[0].num_tokens)
            items.append(self._take(slot, run))
            self.refresh(run)
        for run in misfits:
            self.refresh(run)
        return items

    def _take(self, slot: WorkerSlot, run: RunQueue) -> SentItem:
        request, is_replay = run.send_head()
        slot.share.charge(_tenant_of(run), request.num_tokens)
        return SentItem(run.run_id, request, is_replay)


def _fairest(slot: WorkerSlot) -> tuple[str, tuple[str, TrainingKind]] | None:
    """The run that goes next on a worker, and the queue it is in."""
    heads = [(queue.peek(), key) for key, queue in slot.queues.items()]
    ready = [(head, key) for head, key in heads if head is not None]
    if not ready:
        return None
    (_, _, run_id), key = min(ready)
    return run_id, key


def _num_executes_of(slot: WorkerSlot, tenant_id: str) -> int:
    """Executes on a worker that hold something of the tenant's."""
    return sum(any(item.request.tenant_id == tenant_id for item in items) for items in slot.executing.values())


def _worker_of(run: RunQueue) -> str:
    assert run.worker_id is not None, f"run {run.run_id} is on no worker"
    return run.worker_id


def _tenant_of(run: RunQueue) -> str:
    assert run.row is not None, f"run {run.run_id} is not loaded"
    return run.row.spec.tenant_id


def _kind_of(request: RequestRow) -> TrainingKind:
    assert request.kind not in ("sample", "create_custom_loss"), f"request {request.request_id} is of no run"
    return request.kind
