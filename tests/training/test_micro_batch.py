"""Layout of packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openrl.model.base_model import BaseModel
from openrl.model.batch import Segment
from openrl.model.lora import AdapterBank
from openrl.protocol.datum import Datum
from openrl.training.loss_inputs import read_targets
from openrl.training.micro_batch import PackedDatum, PackedGroup, build_batch, merge_jobs, sequence_segments
from tests.training.workbench import sft_datum, shared_datums


@dataclass(frozen=True, slots=True)
class Wanted:
    job: int
    length: int
    width: int | None = None
    trains_head: bool = False


def packed_datum(number: int, datum: Datum) -> PackedDatum:
    targets = read_targets(datum)
    return PackedDatum(number, datum, targets, np.ones(len(targets.rows_M), np.bool_))


def packed(wanted: Sequence[Wanted]) -> list[PackedGroup]:
    """Groups of one datum."""
    groups: list[PackedGroup] = []
    for seed, each in enumerate(wanted):
        datum = packed_datum(seed, sft_datum(seed, each.length, each.width))
        groups.append(PackedGroup(each.job, each.job, each.trains_head, 0, (datum,)))
    return groups


def shared_group(job: int, prefix: int, *lengths: int) -> PackedGroup:
    """Datums with a common prefix and `lengths` rows of their own."""
    datums = shared_datums(job, prefix, lengths)
    return PackedGroup(job, job, False, prefix, tuple(packed_datum(*each) for each in enumerate(datums)))


def test_rows_are_tokens_in_order_and_padded(model: BaseModel):
    groups = packed([Wanted(0, 3), Wanted(1, 6)])
    bank = AdapterBank(model.linear_shapes, 2, model.dtype, model.device)
    batch = build_batch(model, groups, bank, merges_jobs=False)
    tokens = [group.datums[0].datum.tokens for group in groups]
    assert batch.segments == (Segment(0, 3, 0, 0), Segment(3, 6, 1, 1))
    assert batch.token_ids_T.tolist() == [*tokens[0], *tokens[1]] + [0] * 7
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5] + [0] * 7


def test_a_group_has_its_prefix_once_and_goes_on_from_it(model: BaseModel):
    (single,), shared = packed([Wanted(0, 2)]), shared_group(1, 3, 2, 1)
    bank = AdapterBank(model.linear_shapes, 2, model.dtype, model.device)
    batch = build_batch(model, [single, shared], bank, merges_jobs=False)
    first, second = (each.datum.tokens for each in shared.datums)
    assert batch.token_ids_T.tolist() == [*single.datums[0].datum.tokens, *first, *second[3:]]
    assert batch.position_ids_T.tolist() == [0, 1, 0, 1, 2, 3, 4, 3]
    assert batch.segments == (Segment(0, 2, 0, 0), Segment(2, 6, 1, 1))
    assert sequence_segments([single, shared]) == (
        Segment(0, 2, 0, 0),
        Segment(2, 3, 1, 1),
        Segment(5, 2, 1, 1, parent=1),
        Segment(7, 1, 1, 1, parent=1),
    )


def test_neighbouring_groups_of_a_job_merge_and_others_do_not():
    segments = (Segment(0, 3, 5, 0), Segment(3, 4, 5, 0), Segment(7, 2, 5, 1), Segment(9, 1, 6, 2))
    assert merge_jobs(segments) == (Segment(0, 7, 5, 0), Segment(7, 2, 5, 1), Segment(9, 1, 6, 2))
