"""The cluster over SQL."""

from collections.abc import AsyncIterator, Awaitable, Callable

from openrl.store import leases
from openrl.store.cluster import Demand, HourOfWork, Lease, SchedulerStatus, Signal
from openrl.store.demand import read_demand, read_work
from openrl.store.signals import SignalHub
from openrl.store.sql_ledger import RunQuery
from openrl.store.writer import GroupWriter


class SqlCluster:
    """`Cluster` over the connections of a `SqlStore`; `shout` takes signals to other processes, if there are any."""

    def __init__(
        self,
        read: RunQuery,
        change: RunQuery,
        change_unfenced: RunQuery,
        writer: GroupWriter,
        shout: Callable[[Signal], Awaitable[None]] | None = None,
    ) -> None:
        self._read = read
        self._change = change
        self._change_unfenced = change_unfenced
        self._writer = writer
        self._shout = shout
        self._hub = SignalHub()

    @property
    def is_shared(self) -> bool:
        return self._shout is not None

    def hear(self, signal: Signal) -> None:
        """A process has told this."""
        self._hub.publish(signal)

    def call(self, callback: Callable[[Signal], None]) -> None:
        """Hand it every signal from here on, as soon as it comes."""
        self._hub.call(callback)

    def close(self) -> None:
        """End the iterations over signals."""
        self._hub.close()

    async def acquire_lease(self, name: str, holder: str, address: str, ttl_s: float) -> Lease | None:
        return await self._change_unfenced(leases.acquire, name, holder, address, ttl_s)

    async def renew_lease(self, lease: Lease, ttl_s: float) -> Lease:
        return await self._change_unfenced(leases.renew, lease, ttl_s)

    async def release_lease(self, lease: Lease) -> None:
        await self._change_unfenced(leases.release, lease)

    async def read_lease(self, name: str) -> Lease | None:
        return await self._read(leases.read, name)

    def fence(self, lease: Lease) -> None:
        self._writer.fence = lease

    async def publish_status(self, status: SchedulerStatus) -> None:
        await self._change(leases.publish, status, self._writer.fence)

    async def status(self) -> SchedulerStatus:
        return await self._read(leases.read_status)

    async def demand(self) -> tuple[Demand, ...]:
        return await self._read(read_demand)

    async def work(self, first_hour: int, end_hour: int) -> tuple[HourOfWork, ...]:
        return await self._read(read_work, first_hour, end_hour)

    async def tell(self, signal: Signal) -> None:
        self._hub.publish(signal)
        if self._shout is not None:
            await self._shout(signal)

    def signals(self) -> AsyncIterator[Signal]:
        return self._hub.listen()
