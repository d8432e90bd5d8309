"""How many attempts run at once: rules that hold for all signals, and studies on a virtual server."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.research.packing import (
    BACK_OFF_S,
    FULL,
    HOLD_S,
    LONG_WAIT_S,
    LONGEST_GAP_S,
    ROOM,
    SHORT_WAIT_S,
    Packing,
    Reading,
    repacked,
)

MOST = 8
readings_of = st.lists(
    st.tuples(
        st.floats(0.5, LONGEST_GAP_S * 1.5),
        st.none() | st.floats(0, 1) | st.sampled_from([0.0, ROOM, FULL, 1.0]),
        st.floats(0, 60) | st.sampled_from([0.0, SHORT_WAIT_S, LONG_WAIT_S]),
        st.integers(0, MOST),
        st.booleans(),
    ),
    max_size=80,
)
Signals = list[tuple[float, float | None, float, int, bool]]


@given(readings_of)
def test_each_change_is_one_step_within_bounds_and_is_borne_out_by_all_it_was_made_from(signals: Signals):
    packing, readings, now = Packing(), list[Reading](), 0.0
    shrunk_at: dict[int, float] = {}
    for gap_s, duty, wait_s, num_running, is_settled in signals:
        now += gap_s
        readings.append(Reading(now, duty, wait_s, num_running, is_settled))
        before, packing = packing, repacked(packing, readings, MOST, now)
        assert 1 <= packing.wanted <= MOST
        assert abs(packing.wanted - before.wanted) <= 1
        if packing is before:
            continue
        assert now - before.changed_at >= HOLD_S
        held = [each for each in readings if each.at >= now - HOLD_S]
        assert all(each.device_duty is not None for each in held)
        if packing.wanted > before.wanted:
            assert all((each.device_duty or 0) < ROOM and each.queue_wait_s <= SHORT_WAIT_S for each in held)
            assert all(each.num_running >= before.wanted and each.is_settled for each in held)
            assert now - shrunk_at.get(before.wanted, -BACK_OFF_S) >= BACK_OFF_S
        else:
            assert all((each.device_duty or 0) >= FULL and each.queue_wait_s >= LONG_WAIT_S for each in held)
            shrunk_at[packing.wanted] = now


@given(st.floats(ROOM, FULL, exclude_max=True), st.floats(0, 60), st.integers(1, MOST))
def test_between_the_thresholds_nothing_changes(duty: float, wait_s: float, wanted: int):
    packing = Packing(wanted)
    readings = [Reading(5.0 * each, duty, wait_s, wanted) for each in range(100)]
    assert repacked(packing, readings, MOST, 495.0) is packing


@given(st.integers(1, MOST), st.floats(0, ROOM, exclude_max=True))
def test_an_idle_server_gets_all_that_may_run(most: int, duty: float):
    packing, readings = Packing(), list[Reading]()
    for now in range(0, 600, 5):
        readings.append(Reading(now, duty, 0.0, packing.wanted))
        packing = repacked(packing, readings, most, now)
    assert packing.wanted == most


def test_without_signals_nothing_changes():
    packing = Packing(3)
    assert repacked(packing, [], MOST, 1e6) is packing
    unknown = [Reading(5.0 * each, None, 0.0, 3) for each in range(100)]
    assert repacked(packing, unknown, MOST, 495.0) is packing


class VirtualServer:
    """Attempts that each keep a share of the device busy until it is full; what is too much waits."""

    def __init__(self, share: float, *, others: float = 0.0, seed: int = 0) -> None:
        self.share = share
        self.others = others
        self.draw = random.Random(seed)

    def reading(self, now: float, num_running: int) -> Reading:
        asked = self.others + self.share * num_running
        duty = min(1.0, max(0.0, asked + self.draw.uniform(-0.03, 0.03)) if asked < 1 else 1.0)
        wait_s = max(0.0, asked - 1) * 30 + self.draw.uniform(0, 0.5)
        return Reading(now, duty, wait_s, num_running)


class VirtualStudy:
    """Attempts end after a while and are replaced while fewer run than are wanted."""

    def __init__(self, server: VirtualServer, most: int = 16) -> None:
        self.server = server
        self.most = most
        self.packing = Packing()
        self.readings: list[Reading] = []
        self.ends: list[float] = []
        self.now = 0.0
        self.changes = 0

    def run(self, seconds: float) -> int:
        until = self.now + seconds
        while self.now < until:
            self.now += 5.0
            self.ends = [each for each in self.ends if each > self.now]
            while len(self.ends) < self.packing.wanted:
                self.ends.append(self.now + self.server.draw.uniform(100, 300))
            self.readings.append(self.server.reading(self.now, len(self.ends)))
            before, self.packing = self.packing, repacked(self.packing, self.readings[-30:], self.most, self.now)
            self.changes += before is not self.packing
        return self.packing.wanted


@pytest.mark.parametrize(
    ("share", "settled"), [(0.3, {3}), (0.2, {4, 5}), (0.45, {2}), (1.0, {1}), (0.6, {1, 2}), (0.05, {16})]
)
def test_it_settles_where_the_device_is_full(share: float, settled: set[int]):
    for seed in range(5):
        study = VirtualStudy(VirtualServer(share, seed=seed))
        assert study.run(1200) in settled
        changes = study.changes
        assert study.run(1200) in settled
        assert study.changes - changes <= 4, "it does not swing"


def test_it_makes_room_for_others_without_ending_anything_and_takes_it_back():
    server = VirtualServer(0.2)
    study = VirtualStudy(server)
    assert study.run(600) >= 4
    server.others = 0.9
    assert study.run(600) <= 2
    server.others = 0.0
    assert study.run(BACK_OFF_S + 600) >= 4
