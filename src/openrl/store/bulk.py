"""Many rows in one call: on PostgreSQL as one statement over a JSON document, a third of the cost of one for each."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Table, TextClause, Update, bindparam, text, update

Values = dict[str, Any]


def insert_many(connection: Connection, table: Table, rows: Sequence[Values]) -> None:
    """Add rows that all have the same columns; none of them may be JSON."""
    if connection.dialect.name == "postgresql":
        statement = _insert_documents(table, tuple(rows[0]), connection.dialect)
        connection.execute(statement, {"rows": json.dumps(rows)})
    else:
        connection.execute(table.insert(), list(rows))


def update_many(connection: Connection, table: Table, key: str, rows: Sequence[Values]) -> None:
    """Change rows by a column that is unique, whose value each row has under "id"; all change the same columns."""
    names = tuple(name for name in rows[0] if name != "id")
    if connection.dialect.name == "postgresql":
        statement = _update_documents(table, key, names, connection.dialect)
        connection.execute(statement, {"rows": json.dumps(rows)})
    else:
        connection.execute(_update_each(table, key, names), list(rows))


def raise_many(connection: Connection, table: Table, key: str, column: str, values: dict[str, float]) -> None:
    """Set a column, of rows by their keys, to these values where it is lower."""
    rows = [{"id": each, "at_least": value} for each, value in values.items()]
    if connection.dialect.name == "postgresql":
        connection.execute(_raise_documents(table, key, column, connection.dialect), {"rows": json.dumps(rows)})
    else:
        connection.execute(_raise_each(table, key, column), rows)


@lru_cache
def _insert_documents(table: Table, names: tuple[str, ...], dialect: Dialect) -> TextClause:
    columns = ", ".join(names)
    source = _documents(table, {name: name for name in names}, dialect)
    return text(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {source}")  # noqa: S608  (our own names)


@lru_cache
def _update_documents(table: Table, key: str, names: tuple[str, ...], dialect: Dialect) -> TextClause:
    changes = ", ".join(f"{name} = r.{name}" for name in names)
    source = _documents(table, {"id": key, **{name: name for name in names}}, dialect)
    return text(f"UPDATE {table.name} SET {changes} FROM {source} WHERE {table.name}.{key} = r.id")  # noqa: S608


@lru_cache
def _raise_documents(table: Table, key: str, column: str, dialect: Dialect) -> TextClause:
    source = _documents(table, {"id": key, "at_least": column}, dialect)
    is_lower = f"{table.name}.{key} = r.id AND {table.name}.{column} < r.at_least"
    return text(f"UPDATE {table.name} SET {column} = r.at_least FROM {source} WHERE {is_lower}")  # noqa: S608


@lru_cache
def _raise_each(table: Table, key: str, column: str) -> Update:
    at_least = bindparam("at_least")
    is_lower = (table.c[key] == bindparam("id")) & (table.c[column] < at_least)
    return update(table).where(is_lower).values({column: at_least})


@lru_cache
def _update_each(table: Table, key: str, names: tuple[str, ...]) -> Update:
    return update(table).where(table.c[key] == bindparam("id")).values({name: bindparam(name) for name in names})


def _documents(table: Table, columns: dict[str, str], dialect: Dialect) -> str:
    """A list of JSON objects as rows; `columns` are those of the table whose types the fields have."""
    types = ", ".join(f"{name} {table.c[column].type.compile(dialect)}" for name, column in columns.items())
    return f"json_to_recordset(CAST(:rows AS json)) AS r({types})"
