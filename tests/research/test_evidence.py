"""Statistics against values of a table, and against what they must mean."""

import numpy as np
import pytest

from openrl.research.evidence import bootstrap, student_tail, welch_p


@pytest.mark.parametrize(
    ("t", "degrees", "p"),  # quantiles of Student's t: Abramowitz and Stegun, table 26.10
    [(6.314, 1, 0.05), (2.920, 2, 0.05), (2.015, 5, 0.05), (2.764, 10, 0.01), (1.697, 30, 0.05), (0.0, 7, 0.5)],
)
def test_the_tail_of_students_distribution(t: float, degrees: float, p: float):
    assert student_tail(t, degrees) == pytest.approx(p, rel=2e-3)


def test_equal_samples_show_nothing_and_far_ones_show_it():
    ours, theirs = np.array([0.5, 0.6, 0.7]), np.array([0.5, 0.6, 0.7])
    assert welch_p(ours, theirs) == pytest.approx(0.5)
    low, high = bootstrap(ours, theirs)
    assert low < 0 < high
    assert welch_p(ours + 1, theirs) < 0.001
    assert bootstrap(ours + 1, theirs)[0] > 0.5
    assert welch_p(np.ones(2), np.zeros(2)) == 0.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = sum(low <= 0 <= high for low, high in (bootstrap(*draw.normal(size=(2, 20))) for _ in range(200)))
    assert 0.85 <= covered / 200 <= 1.0
