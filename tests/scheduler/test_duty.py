"""Duty of devices, from heartbeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.rpc.messages import WorkerStats
from openrl.scheduler.duty import LEAST_S, WINDOW_S, DutyMeter


def beat(busy_train_s: float, busy_sample_s: float = 0.0, step_age_s: float = 0.0) -> WorkerStats:
    return WorkerStats(busy_train_s, busy_sample_s, 0, 0, 0, 0, 0, step_age_s)


def test_duty_is_device_time_over_time_and_the_mean_of_workers():
    meter = DutyMeter()
    assert meter.duty() is None
    for second in range(11):
        meter.saw("a", beat(100 + 0.3 * second, 50 + 0.2 * second), second)
        meter.saw("b", beat(7.0), second)
    assert meter.duty() == pytest.approx(0.25)
    meter.left("b")
    assert meter.duty() == pytest.approx(0.5)
    meter.left("a")
    assert meter.duty() is None


def test_a_step_under_way_counts_and_old_work_does_not():
    meter = DutyMeter()
    for second in range(6):
        meter.saw("a", beat(3.0, step_age_s=float(second)), second)
    assert meter.duty() == 1.0
    for second in range(6, 60):
        meter.saw("a", beat(8.0), second)
    assert meter.duty() == 0.0


def test_one_moment_says_nothing():
    meter = DutyMeter()
    meter.saw("a", beat(5.0), 0.0)
    meter.saw("a", beat(6.0), LEAST_S / 2)
    assert meter.duty() is None


@given(st.lists(st.tuples(st.floats(0.01, WINDOW_S * 2), st.floats(0, 100), st.floats(0, 100)), max_size=30))
def test_duty_is_a_share(beats: list[tuple[float, float, float]]):
    meter, now = DutyMeter(), 0.0
    for wait_s, busy_s, step_age_s in beats:
        now += wait_s
        meter.saw("a", beat(busy_s, step_age_s=step_age_s), now)
        duty = meter.duty()
        assert duty is None or 0.0 <= duty <= 1.0
