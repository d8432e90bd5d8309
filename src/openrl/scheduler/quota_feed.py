"""Tells the scheduler's state of quotas: at the start, when they change, and every few seconds if that was missed."""

import asyncio
import contextlib
from collections.abc import Callable

from openrl.scheduler.accounts import DAY_S, month_start
from openrl.scheduler.events import QuotasRead
from openrl.scheduler.store_writer import retried
from openrl.store.base import Store
from openrl.store.ledger import HOUR_S

READ_S = 2.0


class QuotaFeed:
    """Reads the store; `on_read` gets what is new."""

    def __init__(self, store: Store, clock: Callable[[], float], on_read: Callable[[QuotasRead], None]) -> None:
        self._quotas = store.quotas
        self._clock = clock
        self._on_read = on_read
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Read at once."""
        self._changed.set()

    async def start(self) -> None:
        """The quotas and what was used so far; to be called before the first request is handled."""
        now = self._clock()
        month, day = (int(start // HOUR_S) for start in (month_start(now).timestamp(), now // DAY_S * DAY_S))
        rows = await retried(self._quotas.list_quotas)
        this_month = await retried(lambda: self._quotas.device_use(month))
        self._on_read(QuotasRead(rows, this_month, await retried(lambda: self._quotas.device_use(day))))

    async def run(self) -> None:
        """Read for ever, after `start`."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_S):
                    await self._changed.wait()
            self._changed.clear()
            self._on_read(QuotasRead(await retried(self._quotas.list_quotas)))
