"""Tells what worker pools need, on request and as gauges.

All of it comes from the store: a standby tells the same as the leader.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from openrl.config import Config
from openrl.errors import Unavailable
from openrl.scheduler.demand import PoolSignal, pool_signals
from openrl.store.base import Store
from openrl.telemetry.metrics import Metrics

_GAUGES_S = 5.0
_ANSWER_S = 5.0
"""A store that takes longer is as good as gone."""


class Pools:
    """`store` gives the store of the moment, or raises Unavailable."""

    def __init__(self, config: Config, store: Callable[[], Store], metrics: Metrics) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics

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
        cluster = self._store().cluster
        async with asyncio.timeout(_ANSWER_S):
            status = await cluster.status()
            return pool_signals(self._config, await cluster.demand(), status, time.time(), asked)

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
