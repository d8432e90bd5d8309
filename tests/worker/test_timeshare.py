"""Properties of the policy that divides the device, and its slow twin, which reads the whole history each time."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.worker.timeshare import Pace, Side, TimeShare, Turn

BOUND_S = 0.1
Tenants = Collection[str]
SECONDS = st.floats(0.001, 0.5)
SHARES = st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.5, 3.0]))
PRESENCE = st.tuples(st.frozensets(st.sampled_from("abc")), st.frozensets(st.sampled_from("abc")), SECONDS, SECONDS)


@dataclass
class HistoryTimeShare:
    """Decides from the list of everything that happened: who had what, and what each was entitled to."""

    max_slice_s: float
    max_lag_s: float
    shares: dict[str, float]
    events: list[tuple[Literal["training", "sampling", "away"], float, float]] = field(
        default_factory=list[tuple[Literal["training", "sampling", "away"], float, float]]
    )  # seconds, and the share of training then
    held_s: list[float] = field(default_factory=list[float])
    decided_at: float = 0.0
    share: float | None = None  # of training in the turn; None where one side is away
    counts: bool = False

    def lead_s(self) -> float:
        """Training's time minus its share of the time in which both had work; what is away fades."""
        lead_s = 0.0
        for kind, seconds, share in self.events:
            if kind == "away":
                lead_s = max(lead_s - seconds, 0.0) if lead_s > 0 else min(lead_s + seconds, 0.0)
            else:
                lead_s += (seconds if kind == "training" else 0.0) - share * seconds
        return lead_s

    def decide(self, now: float, training: Tenants, sampling: Tenants) -> Turn | None:
        if self.share is None:
            self.events.append(("away", now - self.decided_at, 0.0))
        self.decided_at, self.share, self.counts = now, None, False
        if not training or not sampling:
            self.held_s.clear()
            return Turn("training") if training else Turn("sampling") if sampling else None
        weights = [sum(self.shares.get(t, 1.0) / ((t in training) + (t in sampling)) for t in side)
                   for side in (training, sampling)]  # fmt: skip
        self.share = weights[0] / sum(weights)
        is_late = self.lead_s() < -self.max_lag_s
        is_held = sum(self.held_s) > self.max_slice_s / 2
        self.counts = not (is_late and is_held)
        return Turn("training", self.max_slice_s - sum(self.held_s)) if is_late and not is_held else Turn("sampling")

    def record(self, side: Side, seconds: float) -> None:
        if side == "sampling":
            self.held_s.clear()
        elif self.share is not None:
            self.held_s.append(seconds)
        if self.counts and self.share is not None:
            self.events.append((side, seconds, self.share))


@settings(max_examples=150, deadline=None)
@given(events=st.lists(PRESENCE, max_size=40), shares=SHARES, max_lag_s=st.sampled_from([0.0, 0.3]))
def test_it_decides_as_its_twin_that_reads_the_history(
    events: list[tuple[Tenants, Tenants, float, float]], shares: dict[str, float], max_lag_s: float
):
    fast = TimeShare(BOUND_S, max_lag_s, shares)
    slow = HistoryTimeShare(BOUND_S, max_lag_s, shares)
    now = 0.0
    for training, sampling, slice_s, step_s in events:
        turn, expected = fast.decide(now, training, sampling), slow.decide(now, training, sampling)
        if abs(slow.lead_s() + max_lag_s) < 1e-6:
            return  # a tie that rounding decides
        assert (turn is None) == (expected is None)
        seconds = 0.02
        if turn is not None and expected is not None:
            assert turn.side == expected.side
            assert turn.max_s == pytest.approx(expected.max_s)
            seconds = min(slice_s, turn.max_s) if turn.side == "training" else step_s
            fast.record(turn.side, seconds)
            slow.record(turn.side, seconds)
        now += seconds


@given(events=st.lists(PRESENCE, max_size=40))
def test_no_device_is_idle_while_somebody_has_work(events: list[tuple[Tenants, Tenants, float, float]]):
    share = TimeShare(BOUND_S)
    now = 0.0
    for training, sampling, slice_s, step_s in events:
        turn = share.decide(now, training, sampling)
        assert (turn is None) == (not training and not sampling)
        if turn is not None:
            assert training if turn.side == "training" else sampling
            share.record(turn.side, slice_s if turn.side == "training" else step_s)
            now += slice_s


def play(
    share: TimeShare,
    num_turns: int,
    step_s: Callable[[int], float],
    slice_s: Callable[[int], float],
    tenants: tuple[Tenants, Tenants] = ("a", "b"),
) -> Sequence[tuple[Side, float]]:
    """Both sides always have work; a training slice is as long as it wants to be, at most as long as it may."""
    turns: list[tuple[Side, float]] = []
    for i in range(num_turns):
        turn = share.decide(0.0, *tenants)
        assert turn is not None
        seconds = step_s(i) if turn.side == "sampling" else min(slice_s(i), turn.max_s)
        share.record(turn.side, seconds)
        turns.append((turn.side, seconds))
    return turns


def used(turns: Sequence[tuple[Side, float]], side: Side) -> float:
    return sum(seconds for each, seconds in turns if each == side)


TURNS = st.lists(SECONDS, min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(steps=TURNS, slices=TURNS, weight=st.sampled_from([0.05, 0.5, 1.0, 20.0]))
def test_training_never_holds_the_device_longer_than_the_bound(steps: list[float], slices: list[float], weight: float):
    share = TimeShare(BOUND_S, tenant_shares={"a": weight})
    turns = play(share, 300, lambda i: steps[i % len(steps)], lambda i: slices[i % len(slices)])
    held_s = 0.0
    for side, seconds in turns:
        held_s = held_s + seconds if side == "training" else 0.0
        assert held_s <= BOUND_S + 1e-9


@settings(max_examples=60, deadline=None)
@given(steps=TURNS, slices=TURNS, weight=st.floats(0.1, 10.0), lag_s=st.sampled_from([0.0, 1.0]))
def test_time_is_divided_by_weight(steps: list[float], slices: list[float], weight: float, lag_s: float):
    """Training is at most the allowed lag and one turn behind its share and, once it is that late, never a slice ahead
    of there."""
    share = TimeShare(math.inf, lag_s, {"a": weight})
    turns = play(share, 500, lambda i: steps[i % len(steps)], lambda i: slices[i % len(slices)])
    lead_s = used(turns, "training") - weight / (1 + weight) * sum(seconds for _, seconds in turns)
    assert lead_s >= -lag_s - max(steps) - 1e-6
    assert lead_s <= max(slices) - lag_s + 1e-6 or not used(turns, "training")


@settings(max_examples=60, deadline=None)
@given(step_s=SECONDS, slice_s=SECONDS, weight=st.sampled_from([0.05, 1.0, 20.0]))
def test_neither_side_starves(step_s: float, slice_s: float, weight: float):
    """Sampling has its share or more; training its share or, where the bound binds, half the bound a step."""
    turns = play(TimeShare(BOUND_S, 1.0, {"a": weight}), 2000, lambda i: step_s, lambda i: slice_s)
    trained, sampled = used(turns, "training"), used(turns, "sampling")
    num_steps = sum(side == "sampling" for side, _ in turns)
    assert sampled >= trained / weight - max(slice_s, BOUND_S) / weight - 1e-6
    start_s = (1.0 + step_s) * (1 + weight)  # of decoding, until training is late
    least_s = min(slice_s, BOUND_S / 2) * (num_steps - start_s * (1 + weight) / weight / step_s - 2)
    assert trained >= min(weight * sampled - start_s, least_s) - BOUND_S - 1e-6


def test_sampling_goes_first_until_training_is_late():
    turns = play(TimeShare(BOUND_S, 1.0), 1000, lambda i: 0.01, lambda i: 0.09)
    first = next(i for i, (side, _) in enumerate(turns) if side == "training")
    assert used(turns[:first], "sampling") == pytest.approx(2.0, abs=0.03)
    later = turns[first:]
    assert used(later, "training") == pytest.approx(used(later, "sampling"), abs=0.2)


def test_a_tenant_on_both_sides_weighs_half_on_each():
    turns = play(TimeShare(BOUND_S, 0.0), 4000, lambda i: 0.005, lambda i: 0.02, tenants=("ab", "bcd"))
    assert used(turns, "training") / used(turns, "sampling") == pytest.approx(1.5 / 2.5, rel=0.02)


def test_what_the_bound_takes_from_training_is_not_owed():
    share = TimeShare(BOUND_S, 0.0, {"a": 100.0})
    play(share, 500, lambda i: 0.5, lambda i: 0.1)
    turns = play(share, 500, lambda i: 0.01, lambda i: 0.1, tenants=("c", "b"))
    assert used(turns, "training") / used(turns, "sampling") == pytest.approx(1.0, abs=0.15)


def test_an_idle_side_saves_up_no_credit():
    share, now = TimeShare(BOUND_S, 0.0), 0.0
    for _ in range(1000):
        assert share.decide(now, ["a"], []) == Turn("training")
        share.record("training", 1.0)
        now += 1.0
    sampled_s = 0.0
    while share.decide(now, ["a"], ["b"]) == Turn("sampling"):
        share.record("sampling", 0.1)
        sampled_s += 0.1
    assert sampled_s <= 0.1


def test_a_client_that_waits_for_each_result_has_its_share_beside_sampling_that_never_ends():
    """It is away for a round trip between two requests; that does not send it back to the end of the queue."""
    share, now, trained_s, left_s, back_at = TimeShare(BOUND_S, 1.0), 0.0, 0.0, 0.3, 0.0
    while now < 200.0:
        turn = share.decide(now, "a" if now >= back_at else "", "b")
        assert turn is not None
        seconds = 0.01 if turn.side == "sampling" else min(left_s, turn.max_s)
        share.record(turn.side, seconds)
        now += seconds
        if turn.side == "training":
            trained_s += seconds
            left_s -= seconds
            if left_s <= 1e-9:
                left_s, back_at = 0.3, now + 0.02
    assert trained_s / now > 0.4


def test_a_slice_takes_as_many_tokens_as_fit_its_time():
    pace = Pace(least=1024, grain=512)
    assert pace.fit(0.1, 8192) == 1024
    assert pace.fit(math.inf, 8192) == 8192
    for _ in range(20):
        pace.record(1024, 0.04)
    assert pace.fit(0.1, 8192) == 2560
    assert pace.fit(0.001, 8192) == 1024
    assert pace.fit(10.0, 8192) == 8192
    assert pace.fit(0.1, 384) == 384


def test_one_slow_slice_moves_the_pace_little():
    pace = Pace()
    pace.record(100, 1.0)
    pace.record(100, 1000.0)
    assert pace.fit(1.0, 1000) == 76


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.0, 100.0)), max_size=20), SECONDS, st.integers(1, 9000))
def test_a_slice_is_never_empty_and_never_more_than_there_is(records: list[tuple[int, float]], max_s: float, most: int):
    pace = Pace(least=64, grain=16)
    for units, seconds in records:
        pace.record(units, seconds)
    assert 1 <= pace.fit(max_s, most) <= most
