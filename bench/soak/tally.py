"""What came out of the traffic: answers with their times, and errors by kind."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_ERROR = 120
"""Characters of an error that tell its kind."""


class Answer(NamedTuple):
    """One result as a client got it; times are of this machine's clock, as the server's are."""

    tenant: int
    kind: str
    request_id: str
    polled_at: float  # when the first poll for it was sent
    received_at: float


@dataclass(slots=True)
class Tally:
    """Filled by all tenants."""

    answers: list[Answer] = field(default_factory=list[Answer])
    errors: Counter[str] = field(default_factory=Counter[str])
    num_throttled: int = 0
    num_polls: int = 0

    def fail(self, error: str) -> None:
        """Count an error by what it says."""
        self.errors[error[:MAX_ERROR]] += 1


def spread(counts: Iterable[int]) -> float | None:
    """Largest over smallest; None where somebody has nothing."""
    listed = list(counts)
    return max(listed) / min(listed) if listed and min(listed) else None


def quantile(values: Iterable[float], part: float) -> float | None:
    """The value below which that part of the values lies; None without values."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else None
