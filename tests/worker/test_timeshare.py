"""Properties of the policy that divides the device, and its slow twin, which reads the whole history each time."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

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
    """Decides from the list of everything that happened since both sides have had work."""

    max_slice_s: float
    shares: dict[str, float]
    turns: list[tuple[Side, float, float, bool]] = field(default_factory=list[tuple[Side, float, float, bool]])
    pending: tuple[float, float, bool] | None = None  # weights of the sides, and whether the turn is owed

    def decide(self, training: Tenants, sampling: Tenants) -> Turn | None:
        self.pending = None
        if not training or not sampling:
            self.turns.clear()
            return Turn("training") if training else Turn("sampling") if sampling else None
        weights = [sum(self.shares.get(t, 1.0) / ((t in training) + (t in sampling)) for t in side)
                   for side in (training, sampling)]  # fmt: skip
        used = {side: sum(s / w for each, s, w, owed in self.turns if each == side and owed)
                for side in ("training", "sampling")}  # fmt: skip
        after_last_step = [i for i, turn in enumerate(self.turns) if turn[0] == "sampling"][-1:]
        held_s = sum(turn[1] for turn in self.turns[after_last_step[0] + 1 if after_last_step else 0 :])
        is_behind = used["training"] < used["sampling"] - 1e-9
        is_held = held_s > self.max_slice_s / 2
        self.pending = (weights[0], weights[1], not (is_behind and is_held))
        return Turn("training", self.max_slice_s - held_s) if is_behind and not is_held else Turn("sampling")

    def record(self, side: Side, seconds: float) -> None:
        if self.pending is not None:
            self.turns.append((side, seconds, self.pending[0 if side == "training" else 1], self.pending[2]))


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(PRESENCE, max_size=40), shares=st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.5, 3]))
)
def test_it_decides_as_its_twin_that_reads_the_history(
    events: list[tuple[Tenants, Tenants, float, float]], shares: dict[str, float]
):
    fast, slow = TimeShare(BOUND_S, shares), HistoryTimeShare(BOUND_S, shares)
    for training, sampling, slice_s, step_s in events:
        turn, expected = fast.decide(training, sampling), slow.decide(training, sampling)
        if abs(fast._lead_s) < 1e-6:
            return  # a tie that rounding decides
        assert (turn is None) == (expected is None)
        if turn is not None and expected is not None:
            assert turn.side == expected.side
            assert turn.max_s == pytest.approx(expected.max_s)
            seconds = min(slice_s, turn.max_s) if turn.side == "training" else step_s
            fast.record(turn.side, seconds)
            slow.record(turn.side, seconds)


@given(events=st.lists(PRESENCE, max_size=40))
def test_no_device_is_idle_while_somebody_has_work(events: list[tuple[Tenants, Tenants, float, float]]):
    share = TimeShare(BOUND_S)
    for training, sampling, slice_s, step_s in events:
        turn = share.decide(training, sampling)
        assert (turn is None) == (not training and not sampling)
        if turn is not None:
            assert training if turn.side == "training" else sampling
            share.record(turn.side, slice_s if turn.side == "training" else step_s)


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
        turn = share.decide(*tenants)
        assert turn is not None
        seconds = step_s(i) if turn.side == "sampling" else min(slice_s(i), turn.max_s)
        share.record(turn.side, seconds)
        turns.append((turn.side, seconds))
    return turns


def used(turns: Sequence[tuple[Side, float]], side: Side) -> float:
    return sum(seconds for each, seconds in turns if each == side)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(SECONDS, min_size=1, max_size=5),
    slices=st.lists(SECONDS, min_size=1, max_size=5),
    weight=st.sampled_from([0.05, 0.5, 1.0, 20.0]),
)
def test_training_never_holds_the_device_longer_than_the_bound(steps: list[float], slices: list[float], weight: float):
    share = TimeShare(BOUND_S, {"a": weight})
    turns = play(share, 300, lambda i: steps[i % len(steps)], lambda i: slices[i % len(slices)])
    held_s = 0.0
    for side, seconds in turns:
        held_s = held_s + seconds if side == "training" else 0.0
        assert held_s <= BOUND_S + 1e-9


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(SECONDS, min_size=1, max_size=5), slices=st.lists(SECONDS, min_size=1, max_size=5),
       weight=st.floats(0.1, 10.0))  # fmt: skip
def test_time_is_divided_by_weight(steps: list[float], slices: list[float], weight: float):
    share = TimeShare(math.inf, {"a": weight})
    turns = play(share, 500, lambda i: steps[i % len(steps)], lambda i: slices[i % len(slices)])
    gap_s = used(turns, "training") / weight - used(turns, "sampling")
    assert -max(steps) - 1e-6 <= gap_s <= max(slices) / weight + 1e-6


@settings(max_examples=60, deadline=None)
@given(step_s=SECONDS, slice_s=SECONDS, weight=st.sampled_from([0.05, 1.0, 20.0]))
def test_neither_side_starves(step_s: float, slice_s: float, weight: float):
    """Sampling has its share or more; training its share or, where the bound binds, half the bound a step."""
    turns = play(TimeShare(BOUND_S, {"a": weight}), 2000, lambda i: step_s, lambda i: slice_s)
    trained, sampled = used(turns, "training"), used(turns, "sampling")
    num_steps = sum(side == "sampling" for side, _ in turns)
    assert sampled >= trained / weight - max(slice_s, BOUND_S) / weight - 1e-6
    least_s = min(slice_s, BOUND_S / 2) * num_steps
    assert trained >= min(weight * sampled, least_s) - weight * step_s - BOUND_S - 1e-6


def test_equal_time_though_turns_differ_in_length():
    turns = play(TimeShare(BOUND_S), 1000, lambda i: 0.01, lambda i: 0.09)
    assert abs(used(turns, "training") - used(turns, "sampling")) <= 0.1


def test_a_tenant_on_both_sides_weighs_half_on_each():
    turns = play(TimeShare(BOUND_S), 4000, lambda i: 0.005, lambda i: 0.02, tenants=("ab", "bcd"))
    assert used(turns, "training") / used(turns, "sampling") == pytest.approx(1.5 / 2.5, rel=0.02)


def test_what_the_bound_takes_from_training_is_not_owed():
    share = TimeShare(BOUND_S, {"a": 100.0})
    play(share, 500, lambda i: 0.5, lambda i: 0.1)
    turns = play(share, 500, lambda i: 0.01, lambda i: 0.1, tenants=("c", "b"))
    assert used(turns, "training") / used(turns, "sampling") == pytest.approx(1.0, abs=0.1)


def test_an_idle_side_saves_up_no_credit():
    share = TimeShare(BOUND_S)
    for _ in range(1000):
        assert share.decide(["a"], []) == Turn("training")
        share.record("training", 1.0)
    sampled_s = 0.0
    while share.decide(["a"], ["b"]) == Turn("sampling"):
        share.record("sampling", 0.1)
        sampled_s += 0.1
    assert sampled_s <= 0.1


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
