"""Commits writes in groups: whatever arrives while one group is being committed makes up the next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError, StatementError

from openrl.errors import Unavailable
from openrl.store.base import Blobs
from openrl.store.group import Committed, Write, apply_group, is_unfit

MAX_GROUP = 1024
Waiting = tuple[Write, "asyncio.Future[Any]"]


class GroupWriter:
    """One thread that writes. Lives on one event loop; `on_commit` is called there after each commit."""

    def __init__(self, engine: Engine, blobs: Blobs, on_commit: Callable[[Committed], None]) -> None:
        self._engine = engine
        self._blobs = blobs
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._waiting: list[Waiting] = []
        self._is_busy = False
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()

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
        try:
            return self._apply(writes, is_careful=False)
        except (StatementError, OverflowError, UnicodeEncodeError) as error:
            if not is_unfit(error):
                raise
            return self._apply(writes, is_careful=True)

    def _apply(self, writes: Sequence[Write], is_careful: bool) -> Committed:
        with self._engine.begin() as connection:
            return apply_group(connection, writes, self._blobs, is_careful)

    def _settle(self, group: Sequence[Waiting], commit: "asyncio.Future[Committed]") -> None:
        error = commit.exception()
        if error is None:
            committed = commit.result()
            self._on_commit(committed)
            answers = committed.answers
        else:
            answers = [_failure(error) for _ in group]
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
        return Unavailable(f"the store cannot write at the moment: {error}")
    return error


def _resolve(future: "asyncio.Future[Any]", answer: Any) -> None:
    if future.done():  # its caller has gone; the write stands
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
