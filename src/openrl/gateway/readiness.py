"""Whether a gateway can promise that work gets done: asked often, so remembered for a second."""

import asyncio
from collections.abc import Collection

from openrl.errors import Unavailable
from openrl.store.cluster import Cluster

_LOOK_S = 1.0
_LOOK_WHILE_WAITING_S = 0.1
_ANSWER_S = 5.0
"""A store that takes longer is as good as gone."""


class Readiness:
    """True while the store answers, workers serve every one of `base_models`, and this gateway is not about to stop.

    A gateway of several names no models: requests are taken, and wait, also while no worker is there.
    """

    def __init__(self, cluster: Cluster, base_models: Collection[str]) -> None:
        self._cluster = cluster
        self._base_models = frozenset(base_models)
        self._is_served = False
        self._is_stopping = False

    def is_ready(self) -> bool:
        """As of the last look."""
        return self._is_served and not self._is_stopping

    def stop(self) -> None:
        """Not ready from here on."""
        self._is_stopping = True

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self._is_served = await self._look()
            await asyncio.sleep(_LOOK_S if self._is_served else _LOOK_WHILE_WAITING_S)

    async def _look(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await self._cluster.status()
        except (Unavailable, TimeoutError):
            return False
        return self._base_models <= set(status.base_models)
