"""Layout of packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openrl.model.base_model import BaseModel
from openrl.model.batch import Segment
from openrl.model.lora import AdapterBank
from openrl.training.loss_inputs import read_targets
from openrl.training.micro_batch import PackedDatum, build_batch, merge_jobs, plan_head
from tests.training.workbench import sft_datum


@dataclass(frozen=True, slots=True)
class Wanted:
    job: int
    length: int
    width: int | None = None
    trains_head: bool = False


def packed(wanted: Sequence[Wanted]) -> list[PackedDatum]:
    datums: list[PackedDatum] = []
    for seed, each in enumerate(wanted):
        datum = sft_datum(seed, each.length, each.width)
        needs_grad_M = np.ones(each.length, np.bool_)
        datums.append(PackedDatum(each.job, each.job, each.trains_head, datum, read_targets(datum), needs_grad_M))
    return datums


def test_rows_are_tokens_in_order_and_padded(model: BaseModel):
    datums = packed([Wanted(0, 3), Wanted(1, 6)])
    bank = AdapterBank(model.linear_shapes, 2, model.dtype, model.device)
    batch = build_batch(model, datums, bank, merges_jobs=False)
    assert batch.segments == (Segment(0, 3, 0, 0), Segment(3, 6, 1, 1))
    assert batch.token_ids_T.tolist() == [*datums[0].datum.tokens, *datums[1].datum.tokens] + [0] * 7
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5] + [0] * 7


def test_neighbouring_datums_of_a_job_merge_and_others_do_not():
    segments = (Segment(0, 3, 5, 0), Segment(3, 4, 5, 0), Segment(7, 2, 5, 1), Segment(9, 1, 6, 2))
    assert merge_jobs(segments) == (Segment(0, 7, 5, 0), Segment(7, 2, 5, 1), Segment(9, 1, 6, 2))


def test_head_calls_keep_datum_order_and_never_mix_kinds(model: BaseModel):
    datums = packed([Wanted(0, 3), Wanted(1, 6), Wanted(1, 2, width=4), Wanted(2, 5, trains_head=True), Wanted(0, 4)])
    calls = plan_head(model, datums)
    assert [call.datums for call in calls] == [(0, 1), (2,), (3,), (4,)]
    assert calls[0].rows_M.tolist() == [*range(9)] + [0] * 7
    assert calls[1].targets_MK.shape == (8, 4)
    assert calls[1].targets_MK[2:].eq(-1).all()
    assert not calls[1].needs_grad_M[2:].any()
    assert calls[3].segments == (Segment(0, 4, 0, 0),)
