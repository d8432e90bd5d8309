"""Steps of their own keep the pace of tenants that use less than their part, and no more than that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.sampling.turns import StepTurns

FLOOD = {"alice": 500, "bob": 1}
BOB = frozenset(["bob"])


def run(turns: StepTurns, common_s: float, own_s: float, num_steps: int = 4000) -> tuple[float, float]:
    """Tokens a second of bob and of alice where a common step takes `common_s` and one of bob's alone `own_s`."""
    now, common, own = 0.0, 0, 0
    for _ in range(num_steps):
        served = turns.choose(FLOOD)
        seconds = common_s if served is None else own_s
        turns.record(served, seconds, is_decode=True)
        now += seconds
        common += served is None
        own += served is not None
    return (common + own) / now, common / now


@given(st.floats(0.001, 1.0), st.floats(1.0, 60.0), st.floats(1.25, 6.0))
def test_nobody_is_slowed_down_more_than_the_bound(own_s: float, ratio: float, max_slowdown: float):
    bob, _ = run(StepTurns(32, max_slowdown), own_s * ratio, own_s)
    assert bob * own_s >= 0.97 / max_slowdown


@given(st.floats(0.001, 1.0), st.floats(1.0, 2.0))
def test_there_are_no_own_steps_where_common_ones_are_short_enough(own_s: float, ratio: float):
    turns = StepTurns(32, 2.0)
    _, alice = run(turns, own_s * ratio, own_s)
    assert alice * own_s * ratio >= 0.98  # one own step was needed to measure it


@given(st.floats(0.001, 1.0), st.floats(2.5, 60.0))
def test_the_flood_keeps_what_the_bound_leaves_it(own_s: float, ratio: float):
    _, alice = run(StepTurns(32, 2.0), own_s * ratio, own_s)
    left = 1.0 - (0.5 - 1.0 / ratio) / (1.0 - 1.0 / ratio)  # of the time, by the formula
    assert alice * own_s * ratio == pytest.approx(left, abs=0.05)


@pytest.mark.parametrize(
    "num_sequences", [{}, {"alice": 7}, {"alice": 500, "bob": 300}, {"alice": 16, "bob": 16}, {"alice": 2, "bob": 2}]
)
def test_tenants_with_their_part_share_all_steps(num_sequences: dict[str, int]):
    turns = StepTurns(32, 2.0)
    for _ in range(5):
        assert turns.choose(num_sequences) is None
        turns.record(None, 1.0, is_decode=True)


def test_a_prompt_of_ones_own_is_paid_for_but_does_not_count_as_a_step():
    turns = StepTurns(32, 2.0)
    assert turns.choose(FLOOD) is None
    turns.record(None, 4.0, is_decode=True)
    assert turns.choose(FLOOD) == BOB
    turns.record(BOB, 3.0, is_decode=False)
    assert turns.choose(FLOOD) == BOB
    turns.record(BOB, 1.0, is_decode=True)
    assert turns.choose(FLOOD) is None


def test_who_comes_starts_with_a_step_of_its_own_and_is_owed_no_more_than_one_common_step():
    turns = StepTurns(32, 2.0)
    assert turns.choose(FLOOD) is None
    for _ in range(10):
        turns.record(None, 4.0, is_decode=True)
    assert turns.choose({"alice": 500}) is None
    assert turns.choose(FLOOD) == BOB
    turns.record(BOB, 1.0, is_decode=True)
    assert turns.choose({"alice": 500}) is None
    own = 0
    while turns.choose(FLOOD) == BOB:
        turns.record(BOB, 1.0, is_decode=True)
        own += 1
    assert own == 2  # (4 / 2 - 1) / (1 - 1 / 2) seconds
