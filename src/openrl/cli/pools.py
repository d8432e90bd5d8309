"""Tells what worker pools need, on request and as gauges.

All of it comes from the store: a standby tells the same as the leader.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from openrl.config import Config
from openrl.errors import Unavailable
from openrl.scheduler.demand import RATE_HOURS, PoolSignal, Served, measured_rates, pool_signals
from openrl.store.base import Store
from openrl.store.cluster import Cluster
from openrl.store.ledger import HOUR_S
from openrl.telemetry.metrics import Metrics

_GAUGES_S = 5.0
_RATES_S = 300.0
"""They change by the hour, and reading a week of usage is not free."""
_ANSWER_S = 5.0
"""A store that takes longer is as good as gone."""


async def read_rates(cluster: Cluster, now: float) -> Mapping[Served, float]:
    """As measured in the last week, by the ledger."""
    end_hour = int(now // HOUR_S)
    return measured_rates(await cluster.work(end_hour - RATE_HOURS, end_hour + 1))


class Pools:
    """`store` gives the store of the moment, or raises Unavailable."""

    def __init__(self, config: Config, store: Callable[[], Store], metrics: Metrics) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._rates: Mapping[Served, float] = {}
        self._rates_at = -math.inf

    async def signal(self, pool: str) -> PoolSignal:
        """Of one pool; raises Unavailable or TimeoutError where the store does not tell."""
        return (await self._read(pool))[pool]

    async def keep_gauges(self) -> None:
        """For ever. Without the store there are none, rather than old ones."""
        while True:
            try:
                signals = await self._read()
            except (Unavailable, TimeoutError):
                signals = {}
            self._show(signals)
            await asyncio.sleep(_GAUGES_S)

    async def _read(self, *asked: str) -> dict[str, PoolSignal]:
        cluster, now = self._store().cluster, time.time()
        async with asyncio.timeout(_ANSWER_S):
            if now >= self._rates_at + _RATES_S:
                self._rates, self._rates_at = await read_rates(cluster, now), now
            status = await cluster.status()
            return pool_signals(self._config, await cluster.demand(), status, now, asked, self._rates)

    def _show(self, signals: Mapping[str, PoolSignal]) -> None:
        metrics = self._metrics
        gauges = {
            "wanted_workers": metrics.pool_wanted_workers,
            "waiting_requests": metrics.pool_waiting_requests,
            "waiting_seconds": metrics.pool_waiting_seconds,
            "workers": metrics.pool_workers,
        }
        for name, gauge in gauges.items():
            gauge.clear()
            for pool, signal in signals.items():
                gauge.labels(pool).set(getattr(signal, name))
