"""The right to schedule over a store that several processes share: taken, kept by renewing it, given back."""

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import structlog

from openrl.errors import LeaseLost, Unavailable
from openrl.store.cluster import Cluster, Lease

LEASE = "scheduler"
_ASK_S = 1.0
_RENEWALS_IN_LEASE = 4
_GIVE_BACK_S = 5.0
_log = structlog.get_logger(__name__)


class Seat:
    """One term: whoever takes the seat again, also in this process, does so under a new epoch."""

    def __init__(
        self, cluster: Cluster, address: str, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`address`: where the scheduler can be reached; `clock`: seconds that never jump."""
        self._cluster = cluster
        self._address = address
        self._lease_s = lease_s
        self._clock = clock
        self._holder = uuid.uuid4().hex
        self._held_until = 0.0

    async def take(self) -> Lease:
        """Wait until the seat is free and take it."""
        while True:
            asked_at = self._clock()
            lease = await self._try()
            if lease is not None:
                # From before the question: the store may have counted from then on.
                self._held_until = asked_at + self._lease_s
                return lease
            await asyncio.sleep(_ASK_S)

    async def _try(self) -> Lease | None:
        try:
            if await self._cluster.read_lease(LEASE) is not None:  # cheaper than a transaction that writes
                return None
            return await self._cluster.acquire_lease(LEASE, self._holder, self._address, self._lease_s)
        except Unavailable as error:
            _log.warning("the store cannot be asked who leads", error=str(error))
            return None

    async def keep(self, lease: Lease) -> NoReturn:
        """Renew for ever; raises LeaseLost as soon as another may have the seat."""
        while True:
            await asyncio.sleep(min(self._lease_s / _RENEWALS_IN_LEASE, max(self._held_until - self._clock(), 0.0)))
            asked_at = self._clock()
            try:
                async with asyncio.timeout(self._held_until - asked_at):
                    await self._cluster.renew_lease(lease, self._lease_s)
                self._held_until = asked_at + self._lease_s
            except LeaseLost:
                raise
            except (Unavailable, TimeoutError) as error:
                _log.warning("the lease could not be renewed", error=str(error))
                if self._clock() >= self._held_until:
                    raise LeaseLost(f"the lease was not renewed for {self._lease_s:g} s") from error

    async def give_back(self, lease: Lease) -> None:
        """Others may have it at once; if the store cannot be told, when it has run out."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_S):
                await self._cluster.release_lease(lease)
