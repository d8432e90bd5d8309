"""Keeps a tenant's HTTP requests within its rate: early ones wait a little, and what would wait long is refused."""

import asyncio
from collections.abc import Awaitable, Callable

from openrl.errors import QuotaExceeded
from openrl.gateway.quotas import QuotaBook

LONGEST_WAIT_S = 5.0
FREE_PATHS = frozenset(
    (
        "/retrieve_future",
        "/retrieve_futures",
        "/cancel_future",
        "/session_heartbeat",
        "/telemetry",
        "/client/config",
        "/client/dynamic_config",
        "/auth/token",
    )
)
"""What clients send by themselves, again and again; without it they would lose what they have."""


class RequestRate:
    """One second's worth may come at once; after that requests are spaced evenly, in order of arrival."""

    def __init__(
        self,
        book: QuotaBook,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._book = book
        self._clock = clock
        self._sleep = sleep
        self._next_at: dict[str, float] = {}  # when the next would come if all came evenly, by tenant

    async def admit(self, tenant_id: str, path: str) -> None:
        """Returns when the request may be handled; raises QuotaExceeded when that would take too long."""
        if path in FREE_PATHS:
            return
        rate = await self._book.tenant_limit(tenant_id, "requests_per_s")
        if rate == float("inf"):
            self._next_at.pop(tenant_id, None)
            return
        now = self._clock()
        at = max(self._next_at.get(tenant_id, now), now)
        wait_s = at - now - (max(rate, 1.0) - 1.0) / rate
        if wait_s > LONGEST_WAIT_S:
            message = f"quota requests_per_s of this tenant: {rate:g} requests a second"
            error = QuotaExceeded(f"{message}; try again later", value=rate, bound=f"at most {rate:g} a second")
            error.retry_after_s = wait_s
            raise error
        self._next_at[tenant_id] = at + 1.0 / rate
        if wait_s > 0.0:
            await self._sleep(wait_s)
