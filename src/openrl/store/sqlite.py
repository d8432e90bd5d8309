"""Connections to a SQLite file."""

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

BUSY_TIMEOUT_S = 30.0


def create_writer(url: URL) -> Engine:
    """One connection; a transaction holds the write lock from its beginning."""
    return _create(url, 1, "BEGIN IMMEDIATE")


def create_reader(url: URL, num_connections: int) -> Engine:
    """Connections whose transactions see one state of the database."""
    return _create(url, num_connections, "BEGIN")


def _create(url: URL, num_connections: int, begin: str) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=num_connections,
        max_overflow=0,
        # A pooled connection is used by one thread at a time, but not always by the same one.
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False, "isolation_level": None},
    )

    def prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # FULL syncs the write-ahead log at every commit: a reply means that the row survives a power cut.
        connection.execute("PRAGMA synchronous=FULL")

    def start(connection: Connection) -> None:
        # The driver would start transactions late and deferred; a writer must hold the lock from its
        # first read, or what it read may be gone by the time it writes.
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", start)
    return engine
