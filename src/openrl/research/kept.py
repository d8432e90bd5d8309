"""Which versions of the program a researcher has kept."""

from collections.abc import Iterable

from openrl.research.journal import AttemptRecord
from openrl.research.study import Study


def kept(study: Study, attempts: Iterable[AttemptRecord], researcher: int) -> list[AttemptRecord]:
    """The program as it was, if it ran, then every attempt better than the one before: the last is best."""
    found: list[AttemptRecord] = []
    for each in sorted(attempts, key=lambda each: each.number):
        if each.is_promotion or each.researcher not in (0, researcher) or each.state != "done":
            continue
        value = each.value(study.metric)
        before = found[-1].value(study.metric) if found else None
        if value is not None and (before is None or _is_better(study, value, before)):
            found.append(each)
    return found


def kept_numbers(study: Study, attempts: Iterable[AttemptRecord]) -> set[int]:
    """Of all researchers."""
    everything = list(attempts)
    return {each.number for r in {each.researcher for each in everything} for each in kept(study, everything, r)}


def _is_better(study: Study, value: float, before: float) -> bool:
    return value > before if study.goal == "maximize" else value < before


def what_and_why(attempt: AttemptRecord, max_characters: int = 120) -> str:
    """Of a version of the program, in one line: who made it, its words, and what is said against it."""
    words = attempt.why if attempt.researcher else "the program as it was"
    told = f"{attempt.researcher or ''}: {words}{f' ({attempt.reason})' if attempt.reason else ''}"
    return " ".join(told.split())[:max_characters].removeprefix(": ")
