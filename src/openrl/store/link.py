"""Ties the store of this process to those of the others on the same PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from openrl.errors import Unavailable
from openrl.store.board import RequestBoard
from openrl.store.cluster import Signal
from openrl.store.feed import Feed
from openrl.store.group import Committed
from openrl.store.group_log import tell
from openrl.store.listener import Listener
from openrl.store.notices import Notice, pruned_payload, signal_payload
from openrl.store.sql_ledger import RunQuery

START_TIMEOUT_S = 10.0
_log = structlog.get_logger(__name__)


class Link:
    """Tells others what this process does, and this process what others do."""

    def __init__(
        self,
        writer_id: str,
        options: dict[str, Any],
        board: RequestBoard,
        read: RunQuery,
        last_group: Callable[[], int],
        on_signal: Callable[[Signal], None],
    ) -> None:
        self._writer_id = writer_id
        self._read = read
        self._on_signal = on_signal
        self._feed = Feed(writer_id, board, read, last_group)
        self._listener = Listener(options, self._hear, self._feed.catch_up)
        self._running: asyncio.Task[None] | None = None
        self.publish: Callable[[Committed], None] = self._feed.publish
        self.give_up: Callable[[int], None] = self._feed.give_up
        self.start_at: Callable[[int], None] = self._feed.start_at

    async def start(self) -> None:
        """Return once notices are heard; raises Unavailable if that takes too long."""
        self._running = asyncio.create_task(self._run())
        self._running.add_done_callback(_report)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._listener.wait_until_listening()
        except TimeoutError as error:
            raise Unavailable("the database takes no connection for notices") from error

    async def close(self) -> None:
        """Hear no more."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    def tell_signal(self, signal: Signal) -> Awaitable[None]:
        """Send a signal to the other processes."""
        return self._read(tell, [signal_payload(self._writer_id, signal)])

    def tell_pruned(self) -> Awaitable[None]:
        """Rows that others remember refer to what is gone."""
        return self._read(tell, [pruned_payload(self._writer_id)])

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listener.run())
            tasks.create_task(self._feed.run())

    def _hear(self, notice: Notice) -> None:
        self._feed.hear(notice)
        if notice.signal is not None and notice.writer_id != self._writer_id:
            self._on_signal(notice.signal)


def _report(running: "asyncio.Task[None]") -> None:
    """Only our own bug ends it early: polls then find by reading what nobody tells them."""
    if not running.cancelled() and (error := running.exception()) is not None:
        _log.error("what others commit is not heard any more", exc_info=error)
