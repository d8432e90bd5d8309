"""The scheduler's side of a process: always over a store of its own, in terms over one that is shared."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from openrl.cli.data_dir import check_is_shared, open_store
from openrl.cli.scheduler_metrics import SchedulerCollector
from openrl.config import Config
from openrl.errors import LeaseLost, Unavailable
from openrl.rpc.messages import WorkerStats
from openrl.rpc.transport import serve_workers
from openrl.scheduler.deletion_cost import DeletionCosts, PodApi
from openrl.scheduler.figures import Figures
from openrl.scheduler.loop import Scheduler
from openrl.scheduler.seat import Seat
from openrl.scheduler.watch import Watch
from openrl.store.base import Blobs, Store
from openrl.store.cluster import SchedulerStatus
from openrl.telemetry.logs import get_logger
from openrl.telemetry.metrics import Metrics
from openrl.telemetry.tracing import Tracer
from openrl.worker.supervisor import Supervisor

_PAUSE_S = 1.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    """Where workers find the scheduler, and what they must know."""

    address: str
    secret: bytes
    supervise: Callable[[str], Supervisor] | None = None  # keeps a worker of our own that connects to this address


class SchedulerPart:
    """Everything of a term is made anew: what the last one remembered must not get into the next."""

    def __init__(
        self, config: Config, endpoint: WorkerEndpoint, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        self._config = config
        self._tracer = tracer
        self._metrics = metrics
        metrics.registry.register(SchedulerCollector(self.figures))
        self._endpoint = endpoint
        self._store: Store | None = None  # while it is open
        self._scheduler: Scheduler | None = None  # there while this process decides
        self._supervisor: Supervisor | None = None
        self._draining = asyncio.Event()
        self._ended = asyncio.Event()
        self.standing_by = asyncio.Event()
        """Set from when the store is open."""

    async def run_alone(self, store: Store, blobs: Blobs) -> None:
        """Schedule until drained, over a store that no other process uses."""
        await self._lead(store, blobs)
        self._ended.set()

    async def run_in_terms(self) -> None:
        """Stand by, lead, stand by again, until drained; raises InvalidRequest where the store cannot be shared."""
        while not self._draining.is_set():
            try:
                async with open_store(self._config, self._metrics.store_commit_seconds.observe) as (store, blobs):
                    check_is_shared(store)
                    self._store = store
                    self.standing_by.set()
                    await self._stand_by_and_lead(store, blobs)
            except* LeaseLost as group:
                _log.warning("another scheduler may lead; standing by", error=str(group.exceptions[0]))
            except* Unavailable as group:
                _log.warning("the term is over; standing by", error=str(group.exceptions[0]))
                await asyncio.sleep(_PAUSE_S)
            finally:
                self._store = None
        self._ended.set()

    async def drain(self) -> None:
        """Let workers finish what they have in hand; our own end, others are left to the next who leads."""
        self._draining.set()
        if self._supervisor is not None:
            self._supervisor.drain()
        if self._scheduler is not None:
            await (self._scheduler.stop() if self._supervisor is not None else self._scheduler.hand_over())
        await self._ended.wait()

    def is_started(self) -> bool:
        return self.standing_by.is_set()

    def is_ready(self) -> bool:
        return self._store is not None and not self._draining.is_set()

    def store(self) -> Store:
        """Of this term; raises Unavailable between two."""
        if self._store is None:
            raise Unavailable("the store is not open")
        return self._store

    def state(self) -> dict[str, object]:
        """What a probe shows."""
        workers = sorted(self.worker_stats())
        return {"status": "standing by" if self._scheduler is None else "leading", "workers": workers}

    def worker_stats(self) -> dict[str, WorkerStats]:
        """The latest heartbeat of each worker that is connected here."""
        return {} if self._scheduler is None else self._scheduler.worker_stats()

    def figures(self) -> Figures | None:
        """How much there is of what; None while another process decides."""
        return None if self._scheduler is None else self._scheduler.figures()

    async def _stand_by_and_lead(self, store: Store, blobs: Blobs) -> None:
        seat = Seat(store.cluster, self._endpoint.address, self._config.scheduler.lease_s)
        taking = asyncio.ensure_future(seat.take())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([taking, draining], return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                return
            lease = taking.result()
        finally:
            taking.cancel()
            draining.cancel()
        store.cluster.fence(lease)
        _log.info("leading", epoch=lease.epoch)
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(seat.keep(lease))
                await self._lead(store, blobs)
                keeping.cancel()
        finally:
            await seat.give_back(lease)

    async def _lead(self, store: Store, blobs: Blobs) -> None:
        """Until the scheduler was told to end."""
        await store.cluster.publish_status(SchedulerStatus())  # not that of whoever was here before
        if self._draining.is_set():
            return
        watch = Watch(self._metrics, time.time, self._tracer)
        scheduler = self._scheduler = Scheduler(store, blobs, self._config, watch=watch)
        endpoint = self._endpoint
        try:
            # Workers are hung up on before our own is told to end: it has nobody to wait for then.
            async with (
                asyncio.TaskGroup() as group,
                serve_workers(endpoint.address, endpoint.secret, scheduler.serve_worker) as address,
            ):
                children: list[asyncio.Task[None]] = []
                if endpoint.supervise is not None:
                    self._supervisor = endpoint.supervise(address)
                    children.append(group.create_task(self._supervisor.run()))
                if self._config.scheduler.patch_deletion_cost:
                    children.append(group.create_task(_deletion_costs(self._config, scheduler).run()))
                await scheduler.run()
                for child in children:
                    child.cancel()
        finally:
            self._scheduler = self._supervisor = None


def _deletion_costs(config: Config, scheduler: Scheduler) -> DeletionCosts:
    api = PodApi(config.scheduler.kubernetes_url, config.scheduler.service_account_dir)
    return DeletionCosts(api, lambda: scheduler.status().workers)
