"""Connections to PostgreSQL.

All transactions that write, of all processes, come one after the other: each begins by taking one advisory lock,
which goes with its end. So what a group reads (the newest position, names that are taken, retries) holds until it
commits, as it does on SQLite. READ COMMITTED is enough under the lock: every statement sees all that was committed
before it began, and nobody commits meanwhile. A snapshot taken with the first statement would be older than the lock.
"""

import json
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from openrl.store.schema import metadata

DRIVER = "postgresql+psycopg"
WRITE_LOCK = 0x6F70656E726C  # any number that nobody else takes in this database
IDLE_IN_TRANSACTION_S = 5.0
LOCK_TIMEOUT_S = 10.0
# A server that is gone without a word is noticed within some ten seconds.
OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "openrl",
}
# Every query has its index, but the planner counts on tables as they were at their last statistics: one that has
# grown since would be read from end to end. (Without compilation: it takes the price of a scan to be real.)
_PLANNING = {"enable_seqscan": "off", "jit": "off"}
_TEXT_COLUMNS = text(
    "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
    "JOIN pg_collation k ON k.oid = a.attcollation "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relkind = 'r' "
    "AND a.attnum > 0 AND NOT a.attisdropped AND k.collname <> 'C'"
)


def create_writer(url: URL) -> Engine:
    """One connection; a transaction holds the write lock from its beginning."""
    # A process that stops in the middle of a transaction must not stop the others: the server ends its session.
    settings = {
        "synchronous_commit": "on",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S * 1000:.0f}",
        "lock_timeout": f"{LOCK_TIMEOUT_S * 1000:.0f}",
    }
    engine = _create(url, 1, "READ COMMITTED", settings)

    def lock(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")

    event.listen(engine, "begin", lock)
    return engine


def create_reader(url: URL, num_connections: int) -> Engine:
    """Connections whose transactions see one state of the database."""
    return _create(url, num_connections, "REPEATABLE READ", {})


def listen_options(engine: Engine) -> dict[str, Any]:
    """What psycopg needs to connect to the same database."""
    _, options = engine.dialect.create_connect_args(engine.url)
    return {**options, **OPTIONS}


def order_text_by_bytes(connection: Connection) -> None:
    """Give every column of text the collation "C".

    Order and ranges of ids must be those of SQLite, and not change when the server's language files do.
    """
    found = connection.execute(_TEXT_COLUMNS).all()
    for table, column in ((table, column) for table, column in found if table in metadata.tables):
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE VARCHAR COLLATE "C"')


def _create(url: URL, num_connections: int, isolation_level: Any, settings: dict[str, str]) -> Engine:
    options = " ".join(f"-c {name}={value}" for name, value in {**_PLANNING, **settings}.items())
    # No ping before use: a broken connection is noticed by what fails, which is tried again (`outage.py`).
    return create_engine(
        url,
        pool_size=num_connections,
        max_overflow=0,
        isolation_level=isolation_level,
        connect_args={**OPTIONS, "options": options},
        json_serializer=_encode_json,
    )


def _encode_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:  # met while the driver sends values, where only its own errors belong
        raise psycopg.DataError(f"not JSON: {error}") from error
