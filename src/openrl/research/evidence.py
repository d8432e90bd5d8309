"""What the attempts show: a leaderboard, intervals, a comparison with the defaults that counts every choice tried."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openrl.research.journal import AttemptRecord
from openrl.research.pareto import ranks, spread_order
from openrl.research.study import Objective, Params, Study

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One choice of parameters with all of its seeds."""

    params: Params
    attempts: tuple[AttemptRecord, ...]
    values: tuple[float, ...]  # on the split that choices are made by
    final_values: tuple[float, ...]  # on the one that they are not
    is_front: bool = False  # with several objectives: no other is as good in all and better in one

    def values_of(self, metric: str) -> tuple[float, ...]:
        """Of the attempts that have reported it."""
        return _values(self.attempts, metric)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best choice by one objective against the defaults, on the final split."""

    objective: Objective
    best: Entry
    default: Entry
    difference: float  # in the direction of the goal: positive is better
    interval: tuple[float, float]  # 95 % of bootstrap resamples of seeds
    p_value: float  # of Welch's t-test, one-sided, times the number of choices and objectives (Bonferroni)
    num_choices: int  # that were tried

    @property
    def holds(self) -> bool:
        """Whether the best is better beyond chance."""
        return self.interval[0] > 0 and self.p_value < 0.05


def entries(study: Study, attempts: Iterable[AttemptRecord]) -> list[Entry]:
    """Choices with at least one attempt that was done: best mean first; with objectives, front by front."""
    by_choice: defaultdict[str, list[AttemptRecord]] = defaultdict(list)
    for each in sorted(attempts, key=lambda each: each.number):
        if each.state == "done" and all(each.value(goal.metric) is not None for goal in study.goals):
            by_choice[each.choice].append(each)
    final = study.final_metric or study.metric
    found = [
        Entry(group[0].params, tuple(group), _values(group, study.metric), _values(group, final))
        for group in by_choice.values()
    ]
    if not study.objectives:
        return sorted(found, key=lambda entry: entry.mean, reverse=study.goal == "maximize")
    points = [[goal.sign * statistics.fmean(entry.values_of(goal.metric)) for goal in study.goals] for entry in found]
    rank = ranks(points)
    return [replace(found[i], is_front=rank[i] == 0) for i in spread_order(points)]


def front_numbers(study: Study, attempts: Iterable[AttemptRecord]) -> set[int]:
    """The attempts of the choices on the Pareto front; with one metric none."""
    return {each.number for entry in entries(study, attempts) if entry.is_front for each in entry.attempts}


def is_default(study: Study, attempt: AttemptRecord) -> bool:
    """Whether it has the default parameters, or the program as it was."""
    return attempt.params == study.defaults and not attempt.researcher and bool(study.defaults or study.agent)


def promoted(study: Study, attempts: Iterable[AttemptRecord]) -> list[AttemptRecord]:
    """The first attempts of the best by the first seed, and of the defaults, which they are compared to."""
    first = [each for each in attempts if each.seed == study.seeds[0]]
    best = [entry.attempts[0] for entry in entries(study, first)[: study.promote]]
    return best + [each for each in first if is_default(study, each) and each not in best]


def compare(study: Study, attempts: Sequence[AttemptRecord], objective: int = 0) -> Comparison | None:
    """None without defaults, or where one side has fewer than two seeds on the final split."""
    goal = study.goals[objective]
    final = goal.final_metric or goal.metric
    board = entries(study, attempts)
    default = next((entry for entry in board if is_default(study, entry.attempts[0])), None)
    rivals = [entry for entry in board if entry is not default and len(entry.values_of(final)) >= 2]
    if default is None or not rivals or len(default.values_of(final)) < 2:
        return None
    # Chosen by the selection split, so the final values are no part of the choice.
    best = max(rivals, key=lambda entry: goal.sign * statistics.fmean(entry.values_of(goal.metric)))
    ours, theirs = goal.sign * np.array(best.values_of(final)), goal.sign * np.array(default.values_of(final))
    num_choices = len({each.choice for each in attempts if each.has_run}) - 1
    return Comparison(
        goal, best, default, float(ours.mean() - theirs.mean()), bootstrap(ours, theirs),
        min(1.0, welch_p(ours, theirs) * num_choices * len(study.goals)), num_choices,
    )  # fmt: skip


def bootstrap(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the difference of means (Efron and Tibshirani, 1993)."""
    draw = np.random.default_rng(seed)

    def means(values: np.ndarray) -> np.ndarray:
        return values[draw.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(1)

    low, high = np.percentile(means(ours) - means(theirs), (2.5, 97.5))
    return float(low), float(high)


def welch_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Chance of such a difference, or a larger one, between equal means (Welch, 1947); one-sided."""
    a, b = ours.var(ddof=1) / len(ours), theirs.var(ddof=1) / len(theirs)
    difference = float(ours.mean() - theirs.mean())
    if a + b == 0:
        return 0.0 if difference > 0 else 1.0
    degrees = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return student_tail(difference / math.sqrt(a + b), degrees)


def student_tail(t: float, degrees: float) -> float:
    """P(T > t), by integration of Student's density with x = sqrt(degrees) tan(angle)."""
    angle = np.linspace(math.atan(t / math.sqrt(degrees)), math.pi / 2, 20_001)
    weights = np.cos(angle) ** (degrees - 1)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return float(min(1.0, scale * np.trapezoid(weights, angle)))


def _values(attempts: Iterable[AttemptRecord], metric: str) -> tuple[float, ...]:
    return tuple(value for each in attempts if (value := each.value(metric)) is not None)
