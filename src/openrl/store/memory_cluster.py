"""The cluster in plain dicts: the part of `MemoryStore` that mirrors `leases.py`."""

import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

from openrl.errors import LeaseLost
from openrl.store.cluster import Demand, HourOfWork, Lease, SchedulerStatus, Signal
from openrl.store.signals import SignalHub

# The methods of `Store`, `Ledger` and `Identities` that write; `release_results` only takes note.
WRITES = (
    "create_tenant", "set_tenant_disabled", "add_user", "update_user", "add_api_key", "rotate_api_key",
    "revoke_api_key", "create_share", "revoke_share", "create_session", "heartbeat", "end_session", "create_run",
    "close_run", "record_snapshot", "create_sampler", "join_sampler", "enqueue", "finish", "prune",
    "delete_checkpoint", "delete_expired_checkpoints", "copy_checkpoint", "forget_doomed_object", "update_checkpoint",
    "assign_project", "note_loss_use", "forget_losses", "put_quota", "clear_quota",
)  # fmt: skip
C = TypeVar("C")


class MemoryCluster:
    """`Cluster` of one process. Expired leases are told by the monotonic clock."""

    is_shared = False

    def __init__(
        self,
        demand: Callable[[], tuple[Demand, ...]] = tuple,
        work: Callable[[int, int], tuple[HourOfWork, ...]] = lambda _first, _end: (),
    ) -> None:
        self._demand = demand
        self._work = work
        self._leases: dict[str, tuple[Lease, float]] = {}  # and when they expire; a free one has no holder
        self._fence: Lease | None = None
        self._status: tuple[SchedulerStatus, Lease | None] = SchedulerStatus(), None
        self._hub = SignalHub()

    def close(self) -> None:
        """End the iterations over signals."""
        self._hub.close()

    def check_fence(self) -> None:
        """Raises LeaseLost when another holder has had the lease since."""
        if self._fence is None:
            return
        last, _ = self._leases.get(self._fence.name, (None, 0.0))
        if last is None or last.epoch != self._fence.epoch:
            raise LeaseLost(f"the lease {self._fence.name!r} has a newer epoch than {self._fence.epoch}")

    async def acquire_lease(self, name: str, holder: str, address: str, ttl_s: float) -> Lease | None:
        last, expires_at = self._leases.get(name, (Lease(name, "", 0, 0.0, ""), 0.0))
        if last.holder not in (holder, "") and expires_at > time.monotonic():
            return None
        return self._hold(Lease(name, holder, last.epoch + (last.holder != holder), ttl_s, address))

    async def renew_lease(self, lease: Lease, ttl_s: float) -> Lease:
        last, _ = self._leases.get(lease.name, (None, 0.0))
        if last is None or (last.epoch, last.holder) != (lease.epoch, lease.holder):
            raise LeaseLost(f"the lease {lease.name!r} of epoch {lease.epoch} is lost")
        return self._hold(replace(lease, expires_in_s=ttl_s))

    async def release_lease(self, lease: Lease) -> None:
        last, _ = self._leases.get(lease.name, (None, 0.0))
        if last is not None and last.epoch == lease.epoch:
            self._leases[lease.name] = replace(last, holder="", address=""), 0.0

    async def read_lease(self, name: str) -> Lease | None:
        if name not in self._leases:
            return None
        lease, expires_at = self._leases[name]
        left_s = expires_at - time.monotonic()
        return replace(lease, expires_in_s=left_s) if left_s > 0.0 else None

    def fence(self, lease: Lease) -> None:
        self._fence = lease

    async def publish_status(self, status: SchedulerStatus) -> None:
        self.check_fence()
        self._status = status, self._fence

    async def status(self) -> SchedulerStatus:
        status, lease = self._status
        if lease is None:
            return status
        held = await self.read_lease(lease.name)
        return status if held is not None and held.epoch == lease.epoch else SchedulerStatus()

    async def demand(self) -> tuple[Demand, ...]:
        return self._demand()

    async def work(self, first_hour: int, end_hour: int) -> tuple[HourOfWork, ...]:
        return self._work(first_hour, end_hour)

    async def tell(self, signal: Signal) -> None:
        self._hub.publish(signal)

    def signals(self) -> AsyncIterator[Signal]:
        return self._hub.listen()

    def _hold(self, lease: Lease) -> Lease:
        self._leases[lease.name] = lease, time.monotonic() + lease.expires_in_s
        return lease


def fenced_writes(store: type[C]) -> type[C]:
    """The class; each of its `WRITES` first asks its `cluster` whether it may."""
    for name in WRITES:
        setattr(store, name, _fenced(getattr(store, name)))
    return store


def _fenced(write: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(write)
    async def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        self.cluster.check_fence()
        return await write(self, *arguments, **options)

    return checked
