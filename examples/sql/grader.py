"""Grades a query by what it returns, on databases that it cannot harm."""

import math
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from .databases import NUM_VARIANTS, create_database
from .schemas import Schema

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


class Grade(Enum):
    """How good a query is."""

    FAILED = "failed"  # SQLite refuses it, or it runs into a limit
    WRONG = "wrong"  # it runs, and returns something else
    CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a query: a schema and a query that returns the right answer."""

    schema: Schema
    gold_sql: str

    @property
    def is_ordered(self) -> bool:
        """Whether the order of the rows is part of the answer."""
        return "ORDER BY" in self.gold_sql


class QueryError(Exception):
    """The query was refused or ran into a limit."""


class Grader:
    """Runs queries read-only on every variant of a schema, within limits of time, rows and bytes."""

    def __init__(self) -> None:
        self._databases: dict[str, list[sqlite3.Connection]] = {}
        self._gold: dict[tuple[str, str, int], list[Row]] = {}

    def grade(self, task: Task, sql: str) -> Grade:
        """CORRECT only if the query returns the gold rows on every variant."""
        grade = Grade.CORRECT
        for variant in range(NUM_VARIANTS):
            try:
                rows = self.run(task.schema, variant, sql)
            except QueryError:
                return Grade.FAILED
            if not _is_same(rows, self._gold_rows(task, variant), task.is_ordered):
                grade = Grade.WRONG
        return grade

    def run(self, schema: Schema, variant: int, sql: str) -> list[Row]:
        """The rows that the query returns; raises QueryError."""
        database = self._database(schema, variant)
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

    def _gold_rows(self, task: Task, variant: int) -> list[Row]:
        key = (task.schema.name, task.gold_sql, variant)
        if key not in self._gold:
            self._gold[key] = self.run(task.schema, variant, task.gold_sql)
        return self._gold[key]

    def _database(self, schema: Schema, variant: int) -> sqlite3.Connection:
        if schema.name not in self._databases:
            self._databases[schema.name] = [_locked_database(schema, each) for each in range(NUM_VARIANTS)]
        return self._databases[schema.name][variant]

    def close(self) -> None:
        """Free the databases."""
        for database in (each for variants in self._databases.values() for each in variants):
            database.close()
        self._databases.clear()


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


def _is_same(rows: list[Row], gold: list[Row], is_ordered: bool) -> bool:
    ours, theirs = [_canonical(row) for row in rows], [_canonical(row) for row in gold]
    return ours == theirs if is_ordered else Counter(ours) == Counter(theirs)


def _canonical(row: Row) -> Row:
    """Numbers that are equal up to rounding become the same value: 3, 3.0 and 2.9999999999 are one answer."""
    return tuple(_rounded(value) for value in row)


def _rounded(value: Value) -> Value:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(f"{value:.9g}")
    return value
