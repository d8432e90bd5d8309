"""Snapshots keep their slot while somebody uses them."""

import pytest

from openrl.sampling.adapters import AdapterSlots


def test_a_pinned_adapter_is_loaded_once_and_keeps_its_slot():
    slots = AdapterSlots(2)
    assert slots.pin("a")
    assert slots.pin("a")
    assert slots.take_pending() == [("a", slots.slot("a"))]
    assert slots.take_pending() == []
    slots.unpin("a")
    slots.unpin("a")
    assert slots.pin("a")
    assert slots.take_pending() == []


def test_the_adapter_unused_for_longest_makes_room():
    slots = AdapterSlots(2)
    for key in ("a", "b", "a"):
        assert slots.pin(key)
        slots.unpin(key)
    slots.take_pending()
    freed = slots.slot("b")
    assert slots.pin("c")
    assert slots.take_pending() == [("c", freed)]
    assert slots.pin("a")
    assert slots.take_pending() == []


def test_no_slot_is_given_while_all_are_pinned():
    slots = AdapterSlots(1)
    assert slots.pin("a")
    assert not slots.pin("b")
    slots.unpin("a")
    assert slots.pin("b")
    assert slots.num_pinned == 1


def test_a_forgotten_adapter_is_loaded_again():
    slots = AdapterSlots(1)
    assert slots.pin("a")
    slots.take_pending()
    slots.unpin("a")
    slots.forget("a")
    assert slots.pin("a")
    assert slots.take_pending() == [("a", 0)]


def test_an_adapter_in_use_cannot_be_forgotten():
    slots = AdapterSlots(1)
    slots.pin("a")
    with pytest.raises(AssertionError, match="in use"):
        slots.forget("a")


def test_what_nobody_uses_is_dropped_and_loaded_anew():
    slots = AdapterSlots(3)
    for key in ("a", "b", "c"):
        assert slots.pin(key)
    slots.take_pending()
    slots.unpin("a")
    slots.unpin("c")
    kept, dropped = slots.slot("b"), {slots.slot("a"), slots.slot("c")}
    assert set(slots.drop_unpinned()) == dropped
    assert slots.drop_unpinned() == []
    assert slots.pin("b")
    assert slots.slot("b") == kept
    assert slots.take_pending() == []
    assert slots.pin("c")
    assert slots.take_pending() == [("c", slots.slot("c"))]
    assert slots.slot("c") in dropped
