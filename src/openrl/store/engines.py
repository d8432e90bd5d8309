"""Opens a database: connections with the right durability, tables at the newest revision."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from openrl.errors import InvalidRequest, Unavailable
from openrl.store import postgres, sqlite
from openrl.store.revisions import MIGRATIONS, read_schema, upgrade

NUM_READERS = 4


@dataclass(frozen=True, slots=True)
class Engines:
    """One connection that writes, and a few that read beside it."""

    writer: Engine
    reader: Engine
    is_shared: bool  # whether other processes write too

    def dispose(self) -> None:
        """Close all connections."""
        self.writer.dispose()
        self.reader.dispose()


class SchemaTooOld(Unavailable):
    """The database waits for its migration."""


def open_engines(url: str, *, migrates: bool = True, migrations: Path = MIGRATIONS) -> Engines:
    """Connect, and migrate where the schema is older.

    Raises InvalidRequest for a URL we cannot serve, Unavailable if it does not open or is too new for this code, and
    SchemaTooOld where it is older and must not be migrated.
    """
    parsed = _parse(url)
    engines = _create(parsed)
    try:
        if not _fits(engines, migrates=migrates, migrations=migrations):
            # Holds the write lock: of several processes that start at once, one migrates.
            with engines.writer.begin() as connection:
                _upgrade(connection, migrations, is_shared=engines.is_shared)
    except DBAPIError as error:
        engines.dispose()
        raise _does_not_open(parsed, error) from error
    except Unavailable:
        engines.dispose()
        raise
    return engines


def _fits(engines: Engines, *, migrates: bool, migrations: Path) -> bool:
    """Whether the schema can be used as it is; raises where it cannot be, and not be migrated either."""
    with engines.reader.begin() as connection:
        schema, fit = read_schema(connection, migrations)
    if fit == "too_new":
        raise Unavailable(
            f"the database has schema {schema.revision}, of a later version of openrl that does not run beside this "
            f"one, which knows {schema.wanted}: run the later version, or restore the backup from before its migration"
        )
    if fit == "older" and not migrates:
        raise SchemaTooOld(
            f"the database has {f'schema {schema.revision}' if schema.revision else 'no tables'}, this version needs "
            f"{schema.wanted}: run `openrl migrate` (store.migrate is false)"
        )
    return fit != "older"


def _upgrade(connection: Connection, migrations: Path, *, is_shared: bool) -> None:
    if read_schema(connection, migrations)[1] == "older":  # not if another process was first
        upgrade(connection, migrations)
        if is_shared:
            postgres.order_text_by_bytes(connection)


def probe(url: str) -> str:
    """The name and version of the database at a URL, which is left as it is; raises as `open_engines`."""
    parsed = _parse(url)
    engines = _create(parsed)
    try:
        with engines.reader.connect() as connection:
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
            return f"{'PostgreSQL' if engines.is_shared else 'SQLite'} {version}"
    except DBAPIError as error:
        raise _does_not_open(parsed, error) from error
    finally:
        engines.dispose()


def _does_not_open(url: URL, error: DBAPIError) -> Unavailable:
    return Unavailable(f"the database {url.render_as_string()!r} does not open: {error.orig}")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest("store.url is not a database URL; it is not shown, as it may hold a password") from error
    shown = parsed.render_as_string()
    if parsed.drivername == "postgresql":
        return parsed.set(drivername=postgres.DRIVER)
    if parsed.drivername != "sqlite":
        raise InvalidRequest(f"store.url {shown!r}: only sqlite:///FILE and postgresql://HOST/DATABASE are supported")
    if parsed.database in (None, "", ":memory:"):
        raise InvalidRequest(f"store.url {shown!r} names no file: a store in memory would not survive a restart")
    return parsed


def _create(url: URL) -> Engines:
    if url.drivername == postgres.DRIVER:
        return Engines(postgres.create_writer(url), postgres.create_reader(url, NUM_READERS), is_shared=True)
    return Engines(sqlite.create_writer(url), sqlite.create_reader(url, NUM_READERS), is_shared=False)
