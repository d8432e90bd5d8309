"""Calls that are held until there is an answer; all end at once when the gateway is about to stop."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

_LAST_ANSWERS_S = 0.1
"""A poll that comes while the gateway stops is held no longer: what is there is answered."""


class LongPolls:
    """Those that are held in this process."""

    def __init__(self) -> None:
        self._held: set[asyncio.Timeout] = set()
        self._is_ending = False

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """The block is left early, without an error, when polls end."""
        timeout = asyncio.timeout(_LAST_ANSWERS_S if self._is_ending else None)
        try:
            async with timeout:
                self._held.add(timeout)
                try:
                    yield
                finally:
                    self._held.remove(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise

    def end(self) -> None:
        """From here on clients are told to ask again, which leads them elsewhere."""
        self._is_ending = True
        now = asyncio.get_running_loop().time()
        for timeout in self._held:
            timeout.reschedule(now)
