"""Grades a query by what it returns: run in the sandbox, compared here."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from recipes.sandbox import Limits, Sandbox

from .databases import NUM_VARIANTS
from .queries import run_query
from .schemas import Schema

LIMITS = Limits(timeout_s=10.0, cpu_s=4, memory_bytes=256 * 2**20, result_bytes=2**20)
"""A second line: the query's own limits (queries.py) come first. Wide: a busy machine must not cost a reward."""


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


class Grader:
    """Runs what a model wrote on every variant of a schema, in a sandbox."""

    def __init__(self) -> None:
        self._sandbox = Sandbox("recipes.text_to_sql.queries:run_job", LIMITS)

    def grade(self, task: Task, sql: str) -> Grade:
        """CORRECT only if the query returns the gold rows on every variant."""
        outcome = self._sandbox.run([task.schema.name, sql])
        if outcome.ending != "done":
            return Grade.FAILED
        gold = [run_query(task.schema, variant, task.gold_sql) for variant in range(NUM_VARIANTS)]
        pairs = zip(outcome.value, gold, strict=True)
        is_right = all(_is_same(rows, gold_rows, task.is_ordered) for rows, gold_rows in pairs)
        return Grade.CORRECT if is_right else Grade.WRONG

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()


def _is_same(rows: Sequence[Sequence[Any]], gold: Sequence[Sequence[Any]], is_ordered: bool) -> bool:
    ours, theirs = [_canonical(row) for row in rows], [_canonical(row) for row in gold]
    return ours == theirs if is_ordered else Counter(ours) == Counter(theirs)


def _canonical(row: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers that are equal up to rounding become the same value: 3, 3.0 and 2.9999999999 are one answer."""
    return tuple(_rounded(value) for value in row)


def _rounded(value: Any) -> Any:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(f"{value:.9g}")
    return str(value) if isinstance(value, dict) else value
