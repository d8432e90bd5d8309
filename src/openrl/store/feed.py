"""Brings what other processes commit to the board of this one, from a database that several processes share.

Notices only say that there is something to read. Requests that arrived are read by position, from the last one that
the listeners of this process have; requests that ended are read by id if somebody waits for them. So after a
connection that was lost nothing is missed, and nobody reads again and again.

Lives on the event loop.
"""

import asyncio
from collections.abc import Callable
from itertools import islice

import structlog

from openrl.errors import Unavailable
from openrl.store import requests
from openrl.store.board import RequestBoard
from openrl.store.group import Committed
from openrl.store.notices import Notice
from openrl.store.sql_ledger import RunQuery

BATCH = 500  # requests read by id in one query
RETRY_S = 1.0
_log = structlog.get_logger(__name__)


class Feed:
    """What is still to be read for the board. `last_group` tells the number of this process's newest group."""

    def __init__(self, writer_id: str, board: RequestBoard, read: RunQuery, last_group: Callable[[], int]) -> None:
        self._writer_id = writer_id
        self._board = board
        self._read = read
        self._last_group = last_group
        self._position: int | None = None  # of the last request that was announced; None before anybody listened
        self._is_behind = False
        self._ended: dict[str, None] = {}  # ids to read, in order
        self._wanted = asyncio.Event()
        self._num_doubtful = 0  # own groups up to this number may have met an end that was not heard of
        self._given_up: set[int] = set()  # own groups that may have been committed all the same

    def start_at(self, position: int) -> None:
        """A listener has read all requests up to a position."""
        if self._position is None or self._board.num_listeners == 1:
            self._position = position
        # Others hear some twice, and know by their positions.
        self._position = min(self._position, position)
        self._is_behind = True
        self._wanted.set()

    def publish(self, committed: Committed) -> None:
        """Tell the board what this process has committed, without reading it again where that is in order."""
        if committed.number > self._num_doubtful:
            self._board.keep(committed.arrived)
        self._board.end(committed.ended)
        for row in committed.ended:
            self._board.wake_watches(row.sampler_id, row.seq_id)
        if not committed.arrived:
            return
        if committed.after == self._position:
            self._position = committed.arrived[-1].position
            self._board.announce(committed.arrived)
        else:
            self._want_arrivals()

    def hear(self, notice: Notice) -> None:
        """A process has committed something."""
        if notice.writer_id == self._writer_id and notice.group not in self._given_up:
            return
        if notice.has_arrivals:
            self._want_arrivals()
        for end in notice.ended:
            if self._board.end_elsewhere(end.request_id):
                self._want_end(end.request_id)
            self._board.wake_watches(end.sampler_id, end.seq_id)
        if notice.are_all_in_doubt:
            self._want_all_ends()
        if notice.has_pruned:
            self._board.forget_recent()

    def give_up(self, group: int) -> None:
        """A group of this process failed; whether it was committed is not known."""
        self._given_up.add(group)
        self.catch_up()

    def catch_up(self) -> None:
        """Anything may have been committed since the last notice."""
        self._num_doubtful = self._last_group()
        self._board.forget_recent()
        self._want_arrivals()
        self._want_all_ends()

    async def run(self) -> None:
        """Read what is wanted, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._read_arrivals()
                await self._read_ends()
            except Unavailable as error:
                _log.warning("what others committed cannot be read", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    def _want_arrivals(self) -> None:
        self._is_behind = True
        if self._board.num_listeners:
            self._wanted.set()

    def _want_end(self, request_id: str) -> None:
        self._ended[request_id] = None
        self._wanted.set()

    def _want_all_ends(self) -> None:
        for request_id in self._board.doubt_all():
            self._want_end(request_id)

    async def _read_arrivals(self) -> None:
        while self._is_behind and self._position is not None and self._board.num_listeners:
            self._is_behind = False  # before reading: what is committed meanwhile makes it true again
            try:
                rows = await self._read(requests.arrived_after, self._position)
            except Unavailable:
                self._is_behind = True
                raise
            self._is_behind |= len(rows) == requests.MAX_ARRIVED
            # Meanwhile this process may have announced some of them.
            if fresh := [row for row in rows if row.position > self._position]:
                self._position = fresh[-1].position
                self._board.announce(fresh)

    async def _read_ends(self) -> None:
        while self._ended:
            batch = list(islice(self._ended, BATCH))
            for request_id in batch:  # before reading, as above
                del self._ended[request_id]
            try:
                self._board.end(await self._read(requests.ended_among, batch))
            except Unavailable:
                self._ended.update(dict.fromkeys(batch))
                raise
