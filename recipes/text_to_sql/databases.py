"""Fills the databases: the same schema with different rows for each variant."""

import random
import sqlite3

from .schemas import Schema, Table

NUM_VARIANTS = 2
"""A query must be right on each of them: on a single one, wrong queries pass by luck."""
PARENT_ROWS = 12
CHILD_ROWS = 30
LABELS = """
Ada Amber Arlo Aspen Basil Bella Bruno Cedar Clara Coral Dahlia Dante Delta Echo Elsa Ember Felix Fern Flora
Gala Ginger Hazel Hugo Indigo Iris Ivy Jade Jasper Juno Karma Kiwi Lara Leo Lotus Luna Maple Mila Nora Nova
Olive Onyx Opal Otto Pearl Piper Quill Raven Robin Rosa Ruby Sage Saturn Silva Terra Tulip Uma Vega Willow
"""
"""Names of rows; one word each, so that no query depends on quoting."""


def create_database(schema: Schema, variant: int) -> sqlite3.Connection:
    """An in-memory database with the schema's tables and the rows of that variant; always the same."""
    rng = random.Random(f"{schema.name}/{variant}")
    database = sqlite3.connect(":memory:", isolation_level=None)
    _fill(database, schema, schema.parent, _rows(schema.parent, PARENT_ROWS, rng))
    rows = [(row[0], rng.randint(1, PARENT_ROWS), *row[1:]) for row in _rows(schema.child, CHILD_ROWS, rng)]
    _fill(database, schema, schema.child, rows)
    return database


def _rows(table: Table, num_rows: int, rng: random.Random) -> list[tuple[int | str, ...]]:
    columns: list[list[int] | list[str]] = [list(range(1, num_rows + 1)), rng.sample(LABELS.split(), num_rows)]
    columns += [_categories(values, num_rows, rng) for values in table.categories.values()]
    # Without replacement: ties would give "the highest" several right answers.
    columns += [rng.sample(range(low, high + 1), num_rows) for low, high in table.numbers.values()]
    return list(zip(*columns, strict=True))


def _categories(values: tuple[str, ...], num_rows: int, rng: random.Random) -> list[str]:
    """Every value at least once, the others unevenly: equal counts would make group sizes easy to guess."""
    weights = [rng.random() + 0.1 for _ in values]
    column = [*values, *rng.choices(values, weights, k=num_rows - len(values))]
    return rng.sample(column, num_rows)


def _fill(database: sqlite3.Connection, schema: Schema, table: Table, rows: list[tuple[int | str, ...]]) -> None:
    columns = schema.columns(table)
    keys = ["id INTEGER PRIMARY KEY"]
    if table is schema.child:
        keys.append(f"{schema.foreign_key} INTEGER REFERENCES {schema.parent.name}(id)")
    text = [f"{name} TEXT" for name in (table.label, *table.categories)]
    numbers = [f"{name} INTEGER" for name in table.numbers]
    database.execute(f"CREATE TABLE {table.name} ({', '.join(keys + text + numbers)})")
    database.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(columns))})", rows)
