"""What the head computes of a micro-batch."""

from dataclasses import replace

import numpy as np

from openrl.model.base_model import BaseModel
from openrl.model.batch import Segment
from openrl.training.head_calls import plan_head
from tests.training.test_micro_batch import Wanted, packed, shared_group


def test_head_calls_keep_datum_order_and_never_mix_kinds(model: BaseModel):
    groups = packed([Wanted(0, 3), Wanted(1, 6), Wanted(1, 2, width=4), Wanted(2, 5, trains_head=True), Wanted(0, 4)])
    calls = plan_head(model, groups)
    assert [[each.packed.number for each in call.datums] for call in calls] == [[0, 1], [2], [3], [4]]
    assert calls[0].rows_M.tolist() == [*range(9)] + [0] * 7
    assert [each.rows_M.tolist() for each in calls[0].datums] == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    assert calls[1].targets_MK.shape == (8, 4)
    assert calls[1].targets_MK[2:].eq(-1).all()
    assert not calls[1].needs_grad_M[2:].any()
    assert calls[3].segments == (Segment(0, 4, 0, 0),)


def test_rows_of_a_shared_prefix_are_computed_once_for_all_datums(model: BaseModel):
    (single,), shared = packed([Wanted(0, 2)]), shared_group(1, 3, 2, 1)
    (call,) = plan_head(model, [single, shared])
    assert call.rows_M.tolist() == [*range(8)]
    assert [each.rows_M.tolist() for each in call.datums] == [[0, 1], [2, 3, 4, 5, 6], [2, 3, 4, 7]]
    assert call.segments == (Segment(0, 2, 0, 0), Segment(2, 6, 1, 1))
    for each in call.datums:
        assert np.array_equal(call.targets_MK[each.rows_M].numpy(), each.packed.targets.ids_MK)


def test_a_shared_row_needs_a_gradient_if_any_datum_asks_for_one(model: BaseModel):
    group = shared_group(0, 3, 2, 1)
    asks = (np.array([True, False, False, False, True]), np.array([False, False, True, False]))
    datums = tuple(replace(each, needs_grad_M=one) for each, one in zip(group.datums, asks, strict=True))
    (call,) = plan_head(model, [replace(group, datums=datums)])
    assert call.needs_grad_M.tolist() == [True, False, True, False, True, False, False, False]
