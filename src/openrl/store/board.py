"""Hands committed request rows to the coroutines of this process that wait for them.

Lives on the event loop, so it needs no locks. The database is the truth; the board only saves
reading it again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from openrl.errors import Unavailable
from openrl.store.base import RequestRow

MAX_RECENT = 4096
Group = Sequence[RequestRow]


@dataclass(slots=True)
class EndWatch:
    """Samples of one client of a sampler that end from now on."""

    seq_ids: range
    after: int
    first: "asyncio.Future[RequestRow | None]"
    rows: list[RequestRow] = field(default_factory=list[RequestRow])  # in order of ending


class RequestBoard:
    """Who waits for which request, who listens for new ones, and the rows that ended last."""

    def __init__(self) -> None:
        self._queued: dict[str, RequestRow] = {}
        self._recent: OrderedDict[str, RequestRow] = OrderedDict()
        self._waiters: dict[str, list[asyncio.Future[RequestRow | None]]] = {}
        self._watches: dict[str, list[EndWatch]] = {}  # by sampler
        self._listeners: list[asyncio.Queue[Group | None]] = []
        self._is_closed = False

    def publish(self, arrived: Group, ended: Group) -> None:
        """Tell everybody what was committed."""
        for row in arrived:
            if row.state == "queued":
                self._queued[row.request_id] = row
            else:
                self._settle(row)
        for row in ended:
            self._queued.pop(row.request_id, None)
            self._settle(row)
        if arrived:
            for listener in self._listeners:
                listener.put_nowait(tuple(arrived))

    def look_up(self, request_id: str) -> RequestRow | None:
        """The newest row of a request, if this process committed it lately."""
        return self._queued.get(request_id) or self._recent.get(request_id)

    def forget_recent(self) -> None:
        """Drop rows whose references may have been pruned."""
        self._recent.clear()

    @contextmanager
    def waiting(self, request_id: str) -> "Generator[asyncio.Future[RequestRow | None], None, None]":
        """A future of the row once it has ended; fails with Unavailable when the store closes.

        The caller may resolve it with None to wait no longer.
        """
        if self._is_closed:
            raise Unavailable("the store is closed")
        future: asyncio.Future[RequestRow | None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(request_id, [])
        waiters.append(future)
        try:
            yield future
        finally:
            waiters.remove(future)
            future.cancel()
            if not waiters and self._waiters.get(request_id) is waiters:
                del self._waiters[request_id]

    @contextmanager
    def watching(self, sampler_id: str, seq_ids: range, after: int) -> "Generator[EndWatch, None, None]":
        """Gathers the samples of a sampler with these numbers that end later than `after`; wakes `first` as `waiting`.

        To be left soon after `first` is done: until then the rows pile up.
        """
        if self._is_closed:
            raise Unavailable("the store is closed")
        watch = EndWatch(seq_ids, after, asyncio.get_running_loop().create_future())
        watches = self._watches.setdefault(sampler_id, [])
        watches.append(watch)
        try:
            yield watch
        finally:
            watches.remove(watch)
            watch.first.cancel()
            if not watches and self._watches.get(sampler_id) is watches:
                del self._watches[sampler_id]

    @contextmanager
    def listening(self) -> "Generator[asyncio.Queue[Group | None], None, None]":
        """A queue of the groups that arrive from here on; None when the store closes."""
        queue: asyncio.Queue[Group | None] = asyncio.Queue()
        if self._is_closed:
            queue.put_nowait(None)
        self._listeners.append(queue)
        try:
            yield queue
        finally:
            self._listeners.remove(queue)

    def close(self) -> None:
        """Send everybody home."""
        self._is_closed = True
        futures = [future for waiters in self._waiters.values() for future in waiters]
        futures += [watch.first for watches in self._watches.values() for watch in watches]
        for future in futures:
            if not future.done():
                future.set_exception(Unavailable("the store is closing"))
        for listener in self._listeners:
            listener.put_nowait(None)

    def _settle(self, row: RequestRow) -> None:
        self._recent[row.request_id] = row
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        for future in self._waiters.get(row.request_id, ()):
            if not future.done():
                future.set_result(row)
        for watch in self._watches.get(row.sampler_id, ()):
            if row.end_position > watch.after and row.seq_id in watch.seq_ids:
                watch.rows.append(row)
                if not watch.first.done():
                    watch.first.set_result(row)
