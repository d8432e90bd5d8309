"""What the worker holds of its latest saves."""

import torch

from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.worker.held_adapters import HeldAdapters

SIZE = 4 * (2 * 8 + 8 * 2)


def adapter(value: float) -> AdapterWeights:
    return AdapterWeights(2, {"q_proj": LoraPair(torch.full((2, 8), value), torch.full((8, 2), value))})


def test_the_oldest_goes_when_there_is_no_room():
    held = HeldAdapters(2 * SIZE)
    for index in range(3):
        held.put(f"key{index}", adapter(index))
    assert held.take("key0") is None
    found = held.take("key2")
    assert found is not None
    assert found.pairs["q_proj"].a_RD[0, 0] == 2.0


def test_what_is_taken_is_held_no_longer():
    held = HeldAdapters(SIZE)
    held.put("key", adapter(1.0))
    held.put("key", adapter(2.0))  # a save that was repeated
    assert held.take("key") is not None
    assert held.take("key") is None
    held.put("other", adapter(3.0))
    assert held.take("other") is not None


def test_one_that_is_too_large_is_not_held():
    held = HeldAdapters(SIZE - 1)
    held.put("key", adapter(1.0))
    assert held.take("key") is None
