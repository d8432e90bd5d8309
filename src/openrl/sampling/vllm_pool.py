"""Divides sample jobs among vLLM servers: waits, sends, sends again elsewhere."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from openrl.errors import InvalidRequest, NotFound, OpenRLError, RequestFailed
from openrl.protocol.results import SampleResult
from openrl.sampling.base import FinishedSample, SampleJob, SamplingStats
from openrl.sampling.vllm_client import ServerAway, ServerBroke, VllmClient
from openrl.sampling.vllm_mapping import cache_salt, num_computed_tokens
from openrl.sampling.vllm_replica import PoolFacts, Replica, ReplicaEvents
from openrl.sampling.vllm_routing import ReplicaLoad, choose_replica
from openrl.telemetry.logs import get_logger

_MAX_FAILURES = 3
log = get_logger(__name__)

Outcome = SampleResult | RequestFailed | None
"""None: the job must run again."""
OnEnded = Callable[[int, FinishedSample], None]
"""A job's ticket and how it ended."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Which servers, and how much each gets."""

    urls: Sequence[str]
    max_in_flight: int
    request_s: float
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    """A job; it waits where it has no task."""

    ticket: int
    job: SampleJob
    task: "asyncio.Task[Outcome] | None" = None
    replica: Replica | None = None
    num_failures: int = 0
    device_s: float = 0.0


class Pool:
    """Everything but the constructor is used from the event loop that `run` runs in.

    A job that cannot be placed waits, also while no server is well: that is no error of its client. Next is always a
    job of the tenant that has the fewest samples on the servers.
    """

    def __init__(self, settings: PoolSettings, facts: PoolFacts, on_ended: OnEnded, clock: Callable[[], float]) -> None:
        self.stats = SamplingStats(0, 0, 0, 0)  # replaced as a whole, so that any thread may read it
        self._settings = settings
        self._facts = facts
        self._on_ended = on_ended
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._waiting: dict[str, list[int]] = {}  # by tenant, a heap of tickets: those sent back go first
        self._in_hand: Counter[str] = Counter()  # samples on the servers by tenant
        self._replicas: dict[str, Replica] = {}
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._failure: Exception | None = None

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Work until `close`."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with (
            httpx.AsyncClient(limits=limits, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            self._group = group
            events = ReplicaEvents(self._replica_changed, self._replica_lost, self._clear)
            for url in self._settings.urls:
                client = VllmClient(url, http, self._settings.request_s, self._settings.headers)
                self._replicas[client.url] = Replica(client, self._facts, events)
            watching = [group.create_task(replica.watch()) for replica in self._replicas.values()]
            asyncio.get_running_loop().set_exception_handler(self._break)
            on_ready()
            await self._closing.wait()
            for task in [*watching, *(entry.task for entry in self._entries.values() if entry.task)]:
                task.cancel()
            self._entries.clear()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Drop everything; `run` returns."""
        self._closing.set()

    def add(self, ticket: int, job: SampleJob) -> None:
        """Take a job."""
        self._entries[ticket] = _Entry(ticket, job)
        self._wait(self._entries[ticket])
        self._dispatch()

    def cancel(self, ticket: int) -> None:
        """Forget a job; its connection closes. Unknown ones are fine."""
        entry = self._entries.pop(ticket, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()
        self._measure()

    def _break(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: what it left undone would be waited for for ever, so `run` ends with that."""
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception):
            self._failure = error
            self._closing.set()
        else:
            loop.default_exception_handler(context)

    def _wait(self, entry: _Entry) -> None:
        heapq.heappush(self._waiting.setdefault(entry.job.tenant_id, []), entry.ticket)

    def _next(self) -> _Entry | None:
        """The job that is to be placed next; it stays in its queue."""
        for tenant_id, queue in list(self._waiting.items()):
            while queue and queue[0] not in self._entries:  # cancelled
                heapq.heappop(queue)
            if not queue:
                del self._waiting[tenant_id]
        if not self._waiting:
            return None
        tenant_id = min(self._waiting, key=lambda tenant: (self._in_hand[tenant], self._waiting[tenant][0]))
        return self._entries[self._waiting[tenant_id][0]]

    def _dispatch(self) -> None:
        """Send jobs while a server has room for the next one."""
        while (entry := self._next()) is not None:
            refusal = self._refusal()
            replica = None if refusal else self._choose(entry.job)
            if replica is None and refusal is None:
                break
            heapq.heappop(self._waiting[entry.job.tenant_id])
            if replica is None:
                self._end(entry, refusal)
            else:
                self._send(entry, replica)
        self._measure()

    def _choose(self, job: SampleJob) -> Replica | None:
        loads = [
            ReplicaLoad(each.name, each.num_samples) for each in self._replicas.values() if each.condition == "well"
        ]
        # Samples of the base model go where the prefixes of their sampler are.
        key = job.sampler.adapter_key or cache_salt(job)
        name = choose_replica(key, job.num_samples, loads, self._settings.max_in_flight)
        return None if name is None else self._replicas[name]

    def _refusal(self) -> RequestFailed | None:
        """Why waiting has no use: every server was reached, and none is as it must be."""
        replicas = self._replicas.values()
        if any(each.condition != "unfit" for each in replicas):
            return None
        faults = "; ".join(f"{each.name}: {each.fault}" for each in replicas)
        return RequestFailed(f"no vLLM server can be used: {faults}", "server")

    def _send(self, entry: _Entry, replica: Replica) -> None:
        assert self._group is not None, "jobs come while the pool runs"
        num_samples, tenant_id = entry.job.num_samples, entry.job.tenant_id
        replica.num_samples += num_samples
        self._in_hand[tenant_id] += num_samples
        entered = replica.meter.enter(num_samples, self._clock())
        task = entry.task = self._group.create_task(self._attempt(entry, replica))
        entry.replica = replica

        def settle(_: "asyncio.Task[Outcome]") -> None:
            entry.task = entry.replica = None
            entry.device_s += replica.meter.leave(num_samples, entered, self._clock())
            replica.num_samples -= num_samples
            self._in_hand[tenant_id] -= num_samples
            if not self._in_hand[tenant_id]:
                del self._in_hand[tenant_id]
            self._settle(entry, task)
            key = entry.job.sampler.adapter_key
            if key is not None and entry.ticket not in self._entries:
                self._clear(self._facts.adapters.name_of(key))  # where it could not be loaded nobody has it

        task.add_done_callback(settle)

    async def _attempt(self, entry: _Entry, replica: Replica) -> Outcome:
        try:
            return await replica.sample(entry.job)
        except ServerAway as error:
            replica.leave_out(error)
            return None
        except ServerBroke as error:
            entry.num_failures += 1
            log.warning("a vLLM server failed at a request", server=replica.name, error=str(error))
            return RequestFailed(str(error), "server") if entry.num_failures >= _MAX_FAILURES else None
        except RequestFailed as failure:
            return failure
        except OpenRLError as error:
            return RequestFailed(str(error), "user" if isinstance(error, InvalidRequest | NotFound) else "server")

    def _settle(self, entry: _Entry, task: "asyncio.Task[Outcome]") -> None:
        """After a task: report, or let the job wait again; a cancelled task of a job that is still wanted was moved."""
        if entry.ticket in self._entries and (task.cancelled() or task.exception() is None):
            outcome = None if task.cancelled() else task.result()
            if outcome is None:
                self._wait(entry)
            else:
                self._end(entry, outcome)
        self._dispatch()

    def _end(self, entry: _Entry, outcome: SampleResult | RequestFailed | None) -> None:
        assert outcome is not None, "only jobs with an outcome end"
        del self._entries[entry.ticket]
        num_tokens = num_computed_tokens(entry.job, outcome) if isinstance(outcome, SampleResult) else 0
        request_id = entry.job.request_id
        self._on_ended(entry.ticket, FinishedSample(request_id, outcome, num_tokens, device_s=entry.device_s))

    def _replica_changed(self, replica: Replica) -> None:
        self._dispatch()
        if replica.condition != "away":  # what it lost, or a process that was killed left behind
            for name in self._facts.adapters.names():
                self._clear(name)

    def _replica_lost(self, replica: Replica) -> None:
        for entry in self._entries.values():
            if entry.replica is replica and entry.task is not None:
                entry.task.cancel()

    def _clear(self, name: str) -> None:
        """Delete an adapter's files in a moment, unless a server may need them."""
        if not self._is_needed(name) and self._group is not None and not self._closing.is_set():
            self._group.create_task(self._facts.adapters.delete(name, lambda: self._is_needed(name)))

    def _is_needed(self, name: str) -> bool:
        """Whether a server has an adapter, is about to have it, or has never said what it has."""
        return any(replica.holds(name) or not replica.is_known for replica in self._replicas.values())

    def _measure(self) -> None:
        occupancies = [replica.occupancy for replica in self._replicas.values()]
        num_running = sum(self._in_hand.values())
        num_all = sum(entry.job.num_samples for entry in self._entries.values())
        self.stats = SamplingStats(
            num_running=num_running,
            num_waiting=max(num_all - num_running, 0),
            kv_blocks_used=sum(round(each.cache_used * each.num_blocks) for each in occupancies),
            kv_blocks_total=sum(each.num_blocks for each in occupancies),
        )
