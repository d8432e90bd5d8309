"""Runs a query read-only, within limits of steps, rows and bytes. For model output: in the sandbox."""

import base64
import sqlite3
import time
from typing import Any

from .databases import NUM_VARIANTS, create_database
from .schemas import HELD_OUT_SCHEMAS, TRAIN_SCHEMAS, Schema

MAX_ROWS = 500
MAX_SECONDS = 1.0
MAX_VALUE_BYTES = 100_000
STEPS_BETWEEN_CHECKS = 1000
MAX_CHECKS = 500
"""Half a million virtual-machine steps; a right answer here needs a few hundred."""
ALLOWED_ACTIONS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
ALLOWED_FUNCTIONS = frozenset(
    [
        "abs",
        "avg",
        "coalesce",
        "count",
        "glob",
        "group_concat",
        "ifnull",
        "iif",
        "instr",
        "length",
        "like",
        "lower",
        "max",
        "min",
        "nullif",
        "round",
        "substr",
        "substring",
        "sum",
        "total",
        "trim",
        "typeof",
        "upper",
        "rank",
        "dense_rank",
        "row_number",
    ]
)
"""A list of the good ones: printf alone can fill a gigabyte between two checks of the limit."""

Value = int | float | str | bytes | None
Row = tuple[Value, ...]


_DATABASES: dict[str, tuple[sqlite3.Connection, ...]] = {}
"""By schema; made once a process, and never changed by a query."""
SCHEMAS = {schema.name: schema for schema in (*TRAIN_SCHEMAS, *HELD_OUT_SCHEMAS)}


class QueryError(Exception):
    """The query was refused or ran into a limit."""


def prepare() -> None:
    """Make every database: what the sandbox forks has them."""
    for schema in SCHEMAS.values():
        _databases(schema)


def run_job(job: list[str]) -> list[list[list[Any]]]:
    """Schema and query to rows on every variant, as JSON can say them; raises QueryError."""
    name, sql = job
    answers = [run_query(SCHEMAS[name], variant, sql) for variant in range(NUM_VARIANTS)]
    return [[[_as_json(value) for value in row] for row in rows] for rows in answers]


def run_query(schema: Schema, variant: int, sql: str) -> list[Row]:
    """The rows that the query returns; raises QueryError."""
    database = _databases(schema)[variant]
    limit = _Limit(deadline=time.monotonic() + MAX_SECONDS)
    database.set_progress_handler(limit.is_exceeded, STEPS_BETWEEN_CHECKS)
    try:
        cursor = database.execute(sql)
        rows = cursor.fetchmany(MAX_ROWS + 1)
        cursor.close()
    except (sqlite3.Error, sqlite3.Warning, ValueError, UnicodeError, OverflowError, MemoryError) as error:
        raise QueryError(str(error)) from error
    if not sql.strip() or (cursor.description is None and not rows):
        raise QueryError("not a query")
    if len(rows) > MAX_ROWS:
        raise QueryError(f"more than {MAX_ROWS} rows")
    return rows


def _as_json(value: Value) -> Any:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _databases(schema: Schema) -> tuple[sqlite3.Connection, ...]:
    if schema.name not in _DATABASES:
        _DATABASES[schema.name] = tuple(_locked_database(schema, each) for each in range(NUM_VARIANTS))
    return _DATABASES[schema.name]


class _Limit:
    """Ends a query after a number of steps (the same on every machine) or, failing that, of seconds."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._num_checks = 0

    def is_exceeded(self) -> bool:
        self._num_checks += 1
        return self._num_checks > MAX_CHECKS or time.monotonic() > self._deadline


def _locked_database(schema: Schema, variant: int) -> sqlite3.Connection:
    database = create_database(schema, variant)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10_000)
    database.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 50)
    database.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 10)
    database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    database.set_authorizer(_authorize)
    return database


def _authorize(action: int, _table: str | None, name: str | None, _database: str | None, _source: str | None) -> int:
    if action not in ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (name or "").lower() not in ALLOWED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
