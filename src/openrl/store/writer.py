"""Commits writes in groups: whatever arrives while one group is being committed makes up the next."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError, StatementError

from openrl.errors import Unavailable
from openrl.store.base import Blobs
from openrl.store.cluster import Lease
from openrl.store.failures import unavailable
from openrl.store.group import Committed, Refs, Write, apply_group, is_unfit, put_payloads
from openrl.store.group_log import GroupLog
from openrl.store.outage import Outage

MAX_GROUP = 1024
Waiting = tuple[Write, "asyncio.Future[Any]"]
Timed = Callable[[float], None]
"""Hears of the seconds from a group's start until it was durable, payloads included; from any thread."""


class GroupWriter:
    """One thread that writes. Lives on one event loop; `on_commit` is called there after each commit.

    `fence` is the lease under which this process writes, if it is set. With a `log`, groups go on over an outage of
    the database, each with one effect; `on_failure` is called with the number of a group that was given up.
    """

    def __init__(
        self,
        engine: Engine,
        blobs: Blobs,
        on_commit: Callable[[Committed], None],
        outage: Outage,
        log: GroupLog | None = None,
        on_failure: Callable[[int], None] | None = None,
        timed: Timed | None = None,
    ) -> None:
        self._timed = timed
        self.fence: Lease | None = None
        self._engine = engine
        self._blobs = blobs
        self._on_commit = on_commit
        self._outage = outage
        self._log = log
        self._on_failure = on_failure
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._waiting: list[Waiting] = []
        self._is_busy = False
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def number(self) -> int:
        """Of the group that is being committed, or was last."""
        return self._number

    def submit(self, write: Write) -> "asyncio.Future[Any]":
        """The answer of a write, resolved once it is durable; raises what made it fail."""
        if self._is_closed:
            raise Unavailable("the store is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((write, future))
        if not self._is_busy:
            self._is_busy = True
            self._idle.clear()
            # Not at once: all that is submitted in this turn of the loop joins the group.
            self._loop.call_soon(self._start)
        return future

    async def close(self) -> None:
        """Refuse new writes, finish those submitted, end the thread."""
        self._is_closed = True
        await self._idle.wait()
        self._thread.shutdown()

    def _start(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        commit = self._loop.run_in_executor(self._thread, self._commit, [write for write, _ in group])
        commit.add_done_callback(partial(self._settle, group))

    def _commit(self, writes: Sequence[Write]) -> Committed:
        started = time.perf_counter()
        try:
            return self._put_and_apply(writes)
        finally:
            if self._timed is not None:
                self._timed(time.perf_counter() - started)

    def _put_and_apply(self, writes: Sequence[Write]) -> Committed:
        refs = put_payloads(writes, self._blobs)
        self._number += 1
        try:
            return self._apply(writes, refs, is_careful=False)
        except (StatementError, OverflowError, UnicodeEncodeError) as error:
            if not is_unfit(error):
                raise
            return self._apply(writes, refs, is_careful=True)

    def _apply(self, writes: Sequence[Write], refs: Refs, is_careful: bool) -> Committed:
        last: Committed | None = None  # of an attempt that may have been committed

        def attempt() -> Committed:
            nonlocal last
            with self._engine.begin() as connection:
                if last is not None and self._log is not None and self._log.was_committed(connection, self._number):
                    return last
                last = None
                committed = apply_group(connection, writes, refs, self.fence, is_careful)
                committed.number = self._number
                if self._log is not None:
                    self._log.end_group(connection, self._number, committed)
                last = committed
            return committed

        return self._outage.outlast(attempt)

    def _settle(self, group: Sequence[Waiting], commit: "asyncio.Future[Committed]") -> None:
        error = commit.exception()
        if error is None:
            committed = commit.result()
            self._on_commit(committed)
            answers = committed.answers
        else:
            answers = [_failure(error) for _ in group]
            if self._on_failure is not None:
                self._on_failure(self._number)
        for (_, future), answer in zip(group, answers, strict=True):
            _resolve(future, answer)
        if self._waiting:
            self._loop.call_soon(self._start)
        else:
            self._is_busy = False
            self._idle.set()


def _failure(error: BaseException) -> BaseException:
    """Nothing of the group was committed; a database that refuses is not the callers' mistake."""
    if isinstance(error, SQLAlchemyError):
        return unavailable("write", error)
    return error


def _resolve(future: "asyncio.Future[Any]", answer: Any) -> None:
    if future.done():  # its caller has gone; the write stands
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
