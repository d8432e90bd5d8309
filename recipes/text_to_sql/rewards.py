"""Turns grades into rewards, and the rewards of a group into advantages."""

import statistics
from collections.abc import Sequence

from .grader import Grade

REWARDS = {Grade.CORRECT: 1.0, Grade.WRONG: 0.0, Grade.FAILED: 0.0}
"""Only right answers count. A share for queries that merely run is earned fastest by trivial queries."""


def group_advantages(rewards: Sequence[float]) -> list[float] | None:
    """Rewards relative to the mean of their group; None if all are equal and nothing is to learn.

    They are not divided by the spread: that would give a lone lucky sample more weight than a
    group in which half are right.
    """
    if max(rewards) - min(rewards) < 1e-6:
        return None
    mean = statistics.fmean(rewards)
    return [reward - mean for reward in rewards]
