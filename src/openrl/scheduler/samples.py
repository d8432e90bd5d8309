"""Sends sample requests to workers, fairly between tenants, as room becomes free."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from openrl.protocol.runs import SamplerSpec
from openrl.rpc.messages import Cancel, Outcome, Sample
from openrl.scheduler.actions import LoadSampler
from openrl.scheduler.events import SamplerLoaded
from openrl.scheduler.fleet import Fleet, Suspect, WorkerSlot, sequences_of, work_item
from openrl.scheduler.policy import (
    FairQueue,
    FairShare,
    SampleLoad,
    choose_sample_worker,
    has_room,
    is_part,
    may_overtake,
)
from openrl.store.base import RequestRow

_SAMPLERS_REMEMBERED = 8192


@dataclass(slots=True)
class SampleEntry:
    """A sample request that has not ended."""

    request: RequestRow
    spec: SamplerSpec | None = None  # None until the sampler is loaded
    worker_id: str | None = None


class Samples:
    """All sample requests that have not ended."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._entries: dict[str, SampleEntry] = {}
        self._queues: dict[str, FairQueue] = {}  # by base model
        self._samplers: OrderedDict[str, SamplerSpec] = OrderedDict()
        self._loading: dict[str, list[str]] = {}  # sampler id -> request ids

    def arrive(self, requests: Sequence[RequestRow]) -> None:
        """Sample requests were committed."""
        for request in requests:
            if request.request_id in self._entries or request.state != "queued":
                continue
            entry = SampleEntry(request)
            self._entries[request.request_id] = entry
            spec = self._samplers.get(request.sampler_id)
            if spec is not None:
                self._samplers.move_to_end(request.sampler_id)
                self._wait(entry, spec)
            elif request.sampler_id in self._loading:
                self._loading[request.sampler_id].append(request.request_id)
            else:
                self._loading[request.sampler_id] = [request.request_id]
                self._fleet.act(LoadSampler(request.sampler_id, request.tenant_id))

    def load(self, loaded: SamplerLoaded) -> None:
        """A sampler was read."""
        sampler_id, spec = loaded.sampler_id, loaded.spec
        if spec is not None:
            self._fleet.gate.note_project(loaded.session_id, loaded.project_id)
            self._samplers[sampler_id] = spec
            if len(self._samplers) > _SAMPLERS_REMEMBERED:
                self._samplers.popitem(last=False)
        for request_id in self._loading.pop(sampler_id, []):
            entry = self._entries.get(request_id)
            if entry is None:
                continue
            if spec is None:
                del self._entries[request_id]
                self._fleet.fail(entry.request, f"there is no sampler {sampler_id!r}", "user")
            else:
                self._wait(entry, spec)

    def cancel(self, request_id: str) -> bool:
        """Drop a request wherever it is; False if it is not ours."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        if entry.worker_id is not None:
            slot = self._fleet.workers[entry.worker_id]
            slot.remove_sample(request_id)
            self._fleet.send(slot.worker_id, Cancel(request_id))
            self._touch(slot)
        elif entry.spec is not None:
            self._queues[entry.spec.base_model].discard(request_id)
        self._fleet.cancel(entry.request)
        return True

    def granted(self, request_id: str) -> bool:
        """A request that its quotas held back may start; False if it is not ours."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        assert entry.spec is not None, f"sample {request_id} asked before its sampler was loaded"
        self._wait(entry, entry.spec)
        return True

    def hold_back(self, tenant_id: str) -> None:
        """What the tenant has ready to be sent asks for leave again."""
        for request_id, entry in self._entries.items():
            if entry.request.tenant_id == tenant_id and entry.spec is not None and entry.worker_id is None:
                self._queues[entry.spec.base_model].discard(request_id)
                self._fleet.gate.revoke(entry.request)

    def waiting(self) -> Iterator[RequestRow]:
        """Those that no worker has."""
        return (entry.request for entry in self._entries.values() if entry.worker_id is None)

    def cancel_session(self, session_id: str) -> None:
        """Drop all requests of a session."""
        ids = [key for key, entry in self._entries.items() if entry.request.session_id == session_id]
        for request_id in ids:
            self.cancel(request_id)

    def done(self, slot: WorkerSlot, outcomes: Sequence[Outcome]) -> None:
        """Requests ended on a worker."""
        for outcome in outcomes:
            entry = self._entries.get(outcome.request_id)
            if entry is None or entry.worker_id != slot.worker_id:
                continue  # cancelled while its report was under way
            assert entry.spec is not None
            del self._entries[outcome.request_id]
            slot.remove_sample(outcome.request_id)
            self._fleet.finish(entry.request, outcome, entry.spec.base_model)
        self._touch(slot)

    def worker_gone(self, slot: WorkerSlot) -> None:
        """Take back what a lost worker had; call after it has left the fleet."""
        for request_id in slot.samples:
            entry = self._entries[request_id]
            entry.worker_id = None
            self._fleet.gate.revoke(entry.request)
            if self._fleet.survives_loss(entry.request):
                assert entry.spec is not None
                self._wait(entry, entry.spec)
            else:
                del self._entries[request_id]
        self.drain(slot)

    def drain(self, slot: WorkerSlot) -> None:
        """Suspects that wait for a worker which gets nothing more wait for another."""
        for suspect in slot.suspects:
            entry = self._entries.get(suspect.name) if suspect.kind == "sample" else None
            if entry is not None and entry.spec is not None:
                self._wait(entry, entry.spec)
        slot.suspects.clear()

    def dispatch(self, base_model: str) -> None:
        """Send waiting requests while a worker has room.

        Those behind the fairest next one wait with it, but for what tenants may have however full the workers are.
        """
        queue = self._queues.get(base_model)
        slots = [slot for slot in self._fleet.workers.values() if slot.takes(base_model, "sample")]
        while queue is not None and (head := queue.peek()) is not None:
            entry = self._entries[head[2]]
            if self._fleet.is_suspect(entry.request):
                slot = min(slots, key=lambda slot: slot.num_sequences, default=None)
                if slot is None:
                    return
                queue.discard(head[2])
                slot.suspects[Suspect("sample", head[2])] = None
                self._fleet.touch_worker(slot)
            elif not self._send_next(queue, slots, entry):
                return

    def send_alone(self, slot: WorkerSlot, request_id: str) -> None:
        """Send a suspect request as the only thing on an empty worker, unless it was cancelled."""
        entry = self._entries.get(request_id)
        if entry is not None:
            slot.running_alone = request_id
            self._send(slot, entry)

    def _wait(self, entry: SampleEntry, spec: SamplerSpec) -> None:
        entry.spec = spec
        if spec.base_model not in self._queues:
            self._queues[spec.base_model] = FairQueue(FairShare(self._fleet.tenant_shares))
        request = entry.request
        if not self._fleet.gate.ask(request):
            return
        self._queues[spec.base_model].push(request.tenant_id, request.position, request.request_id)
        self._fleet.touched_models[spec.base_model] = None

    def _send_next(self, queue: FairQueue, slots: Sequence[WorkerSlot], head: SampleEntry) -> bool:
        """Send one request; False where no worker is open to any."""
        slot = self._choose(slots, head, has_room)
        if slot is None:
            return self._send_overtaking(queue, slots, head)
        # Not for who overtakes: others would be moved along, and lose what they are behind.
        queue.share.serve(head.request.tenant_id)
        self._send_queued(queue, slot, head)
        return True

    def _send_overtaking(self, queue: FairQueue, slots: Sequence[WorkerSlot], head: SampleEntry) -> bool:
        """Send one request of a tenant that has its part coming though the head has to wait."""
        share = queue.share
        head_time = share.time_of(head.request.tenant_id)
        for entry in [self._entries[request_id] for request_id in queue.heads()]:
            tenant_id, wanted = entry.request.tenant_id, sequences_of(entry.request)
            if entry is head or not any(_has_part(slot, tenant_id, wanted) for slot in slots):
                continue
            if self._fleet.is_suspect(entry.request):
                continue
            lead = (share.time_of(tenant_id) - head_time) / share.cost_of(tenant_id, entry.request.num_tokens)
            is_open = partial(may_overtake, num_waiting=queue.num_items(tenant_id), lead=lead)
            slot = self._choose(slots, entry, is_open)
            if slot is not None:
                self._send_queued(queue, slot, entry)
                return True
        return False

    def _send_queued(self, queue: FairQueue, slot: WorkerSlot, entry: SampleEntry) -> None:
        queue.discard(entry.request.request_id)
        self._send(slot, entry)

    def _choose(
        self, slots: Sequence[WorkerSlot], entry: SampleEntry, is_open: Callable[[SampleLoad, int], bool]
    ) -> WorkerSlot | None:
        assert entry.spec is not None
        key, tenant_id = entry.spec.adapter_key, entry.request.tenant_id
        loads = [
            SampleLoad(
                slot.worker_id,
                slot.num_sequences,
                slot.ready.max_sequences,
                has_adapter=key is None or key in slot.adapters,
                num_of_tenant=slot.sequences[tenant_id],
                num_tenants=len(slot.sequences) + (tenant_id not in slot.sequences),
            )
            for slot in slots
            if not slot.is_quarantined()
        ]
        worker_id = choose_sample_worker(loads, sequences_of(entry.request), is_open)
        return None if worker_id is None else self._fleet.workers[worker_id]

    def _send(self, slot: WorkerSlot, entry: SampleEntry) -> None:
        assert entry.spec is not None
        queue = self._queues[entry.spec.base_model]
        queue.share.charge(entry.request.tenant_id, entry.request.num_tokens)
        entry.worker_id = slot.worker_id
        slot.add_sample(entry.request, entry.spec.adapter_key)
        self._fleet.send(slot.worker_id, Sample(work_item(entry.request, entry.spec)))

    def _touch(self, slot: WorkerSlot) -> None:
        self._fleet.touch_worker(slot)
        for base_model in slot.ready.base_models:
            self._fleet.touched_models[base_model] = None


def _has_part(slot: WorkerSlot, tenant_id: str, wanted: int) -> bool:
    num_tenants = len(slot.sequences) + (tenant_id not in slot.sequences)
    return is_part(slot.sequences.get(tenant_id, 0), wanted, num_tenants, slot.ready.max_sequences)
