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
MAX_ENDED_ELSEWHERE = 65536
Group = Sequence[RequestRow]


@dataclass(slots=True)
class EndWatch:
    """Samples of one client of a sampler that end from now on."""

    seq_ids: range
    after: int
    first: "asyncio.Future[RequestRow | None]"  # done when there is something to read, or rows are there
    rows: list[RequestRow] = field(default_factory=list[RequestRow])  # in order of ending


class RequestBoard:
    """Who waits for which request, who listens for new ones, and the rows that ended last."""

    def __init__(self) -> None:
        self._queued: dict[str, RequestRow] = {}
        self._recent: OrderedDict[str, RequestRow] = OrderedDict()
        self._ended_elsewhere: OrderedDict[str, None] = OrderedDict()  # by another process
        self._waiters: dict[str, list[asyncio.Future[RequestRow | None]]] = {}
        self._watches: dict[str, list[EndWatch]] = {}  # by sampler
        self._listeners: list[asyncio.Queue[Group | None]] = []
        self._num_doubts = 0
        self._is_closed = False

    @property
    def num_doubts(self) -> int:
        """How often ends may have gone unheard."""
        return self._num_doubts

    @property
    def num_listeners(self) -> int:
        """Who wants to hear of new requests."""
        return len(self._listeners)

    def publish(self, arrived: Group, ended: Group) -> None:
        """Tell everybody what was committed, where no other process commits."""
        self.keep(arrived)
        self.end(ended)
        for row in ended:
            self._gather(row)
        self.announce(arrived)

    def keep(self, arrived: Group) -> None:
        """Remember what this process has stored."""
        for row in arrived:
            if row.state != "queued":
                self._settle(row)
            elif row.request_id not in self._ended_elsewhere:
                self._queued[row.request_id] = row

    def keep_waited(self, row: RequestRow, num_doubts: int) -> None:
        """Remember a queued row that was read for somebody who waits since `num_doubts`, and who will ask again."""
        if num_doubts == self._num_doubts:  # otherwise its end may have gone unheard
            self.keep([row])

    def announce(self, arrived: Group) -> None:
        """Hand new requests to those who listen."""
        if arrived:
            for listener in self._listeners:
                listener.put_nowait(tuple(arrived))

    def end(self, ended: Group) -> None:
        """Hand rows that have ended to those who wait for them."""
        for row in ended:
            self._queued.pop(row.request_id, None)
            self._settle(row)

    def wake_watches(self, sampler_id: str, seq_id: int) -> None:
        """A sample has ended: those who watch for it have something to read."""
        for watch in self._watches.get(sampler_id, ()):
            if seq_id in watch.seq_ids:
                _resolve(watch.first, None)

    def end_elsewhere(self, request_id: str) -> bool:
        """Another process has ended a request; returns whether somebody waits for its row."""
        self._queued.pop(request_id, None)
        # The news may be here before this process knows that it has stored the request.
        self._ended_elsewhere[request_id] = None
        if len(self._ended_elsewhere) > MAX_ENDED_ELSEWHERE:
            self._ended_elsewhere.popitem(last=False)
        return request_id in self._waiters

    def doubt_all(self) -> list[str]:
        """Anything may have ended elsewhere: wakes all watches, returns the requests that somebody waits for."""
        self._num_doubts += 1
        self._queued.clear()
        for watches in self._watches.values():
            for watch in watches:
                _resolve(watch.first, None)
        return list(self._waiters)

    def look_up(self, tenant_id: str, request_id: str) -> RequestRow | None:
        """The newest row of a tenant's request, if this process committed it lately."""
        row = self._queued.get(request_id) or self._recent.get(request_id)
        return row if row is not None and row.tenant_id == tenant_id else None

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
            _resolve(future, row)

    def _gather(self, row: RequestRow) -> None:
        for watch in self._watches.get(row.sampler_id, ()):
            if row.end_position > watch.after and row.seq_id in watch.seq_ids:
                watch.rows.append(row)
                _resolve(watch.first, row)


def _resolve(future: "asyncio.Future[RequestRow | None]", row: RequestRow | None) -> None:
    if not future.done():
        future.set_result(row)
