"""Opens a database: connections with the right durability, tables at the newest revision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import QueuePool

from openrl.errors import InvalidRequest, Unavailable

NUM_READERS = 4
BUSY_TIMEOUT_S = 30.0
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Engines:
    """One connection that writes, and a few that read beside it."""

    writer: Engine
    reader: Engine

    def dispose(self) -> None:
        """Close all connections."""
        self.writer.dispose()
        self.reader.dispose()


def open_engines(url: str) -> Engines:
    """Connect and migrate; raises InvalidRequest for a URL we cannot serve, Unavailable if it does not open."""
    parsed = _parse(url)
    engines = Engines(_sqlite_engine(parsed, 1, "BEGIN IMMEDIATE"), _sqlite_engine(parsed, NUM_READERS, "BEGIN"))
    try:
        with engines.writer.begin() as connection:
            _upgrade(connection)
    except OperationalError as error:
        engines.dispose()
        raise Unavailable(f"the database {url!r} does not open: {error.orig}") from error
    return engines


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(f"store.url {url!r} is not a database URL") from error
    if parsed.get_backend_name() != "sqlite":
        raise InvalidRequest(f"store.url {url!r}: only sqlite:///FILE is supported")
    if parsed.database in (None, "", ":memory:"):
        raise InvalidRequest(f"store.url {url!r} names no file: a store in memory would not survive a restart")
    return parsed


def _sqlite_engine(url: URL, num_connections: int, begin: str) -> Engine:
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


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
