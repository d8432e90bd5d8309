"""Waits for a database that is away for a while: a restart is a delay, not an error."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError

MAX_OUTAGE_S = 20.0
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Outage:
    """Shared by the threads that use one database."""

    def __init__(self) -> None:
        self._since: float | None = None  # monotonic seconds; None while the database answers
        self._closing = threading.Event()

    def close(self) -> None:
        """Whoever waits gives up, and nobody waits any more."""
        self._closing.set()

    def outlast(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns; it is tried again while the database is away, for up to MAX_OUTAGE_S."""
        pause_s = 0.0  # a connection that broke earlier is noticed only now: a second one may work at once
        while True:
            try:
                answer = attempt()
            except DBAPIError as error:
                if not _is_away(error) or not self._wait(pause_s):
                    raise
                _log.warning("the database is away", error=str(error.orig))
                pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)
            else:
                self._since = None
                return answer

    def _wait(self, pause_s: float) -> bool:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since < MAX_OUTAGE_S and not self._closing.wait(pause_s)


def _is_away(error: DBAPIError) -> bool:
    """Whether the server cannot do this now, rather than the statement being wrong; never of SQLite."""
    return error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError | psycopg.InternalError)
