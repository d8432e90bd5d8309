"""One connection to PostgreSQL that hears the notices of all processes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

from openrl.store.notices import CHANNEL, Notice, read_payload

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
MAX_DEAF_S = 10.0
_log = structlog.get_logger(__name__)


class Listener:
    """Calls `on_notice` for each notice, and `on_gap` when some may not have been heard."""

    def __init__(
        self, options: dict[str, Any], on_notice: Callable[[Notice], None], on_gap: Callable[[], None]
    ) -> None:
        self._options = options
        self._on_notice = on_notice
        self._on_gap = on_gap
        self._is_listening = asyncio.Event()

    async def wait_until_listening(self) -> None:
        """Return once the connection stands."""
        await self._is_listening.wait()

    async def run(self) -> None:
        """Listen for ever, over all interruptions."""
        pause_s, told_at = FIRST_PAUSE_S, 0.0
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._options, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    # After LISTEN: what is committed from here on is heard, what was before is to be read.
                    self._on_gap()
                    self._is_listening.set()
                    pause_s = FIRST_PAUSE_S
                    async for notice in connection.notifies():
                        self._on_notice(read_payload(notice.payload))
            except psycopg.Error as error:
                _log.warning("no notices from the database", error=str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            if time.monotonic() - told_at > MAX_DEAF_S:
                # Reading may work where listening does not.
                told_at = time.monotonic()
                self._on_gap()
