"""Plans what the head computes of one micro-batch.

Legend: M head rows, K targets of one row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.batch import Segment
from openrl.model.transfers import to_device
from openrl.training.loss_inputs import ABSENT
from openrl.training.micro_batch import PackedDatum, PackedGroup, group_segments, segments_of


@dataclass(frozen=True, slots=True)
class HeadDatum:
    """One datum of a head call and where its log-probabilities are."""

    job: int
    packed: PackedDatum
    rows_M: Int64[Tensor, " M"]  # of the call, on the host; rows of a shared prefix are in several datums


@dataclass(frozen=True, slots=True)
class HeadCall:
    """Groups whose log-probabilities are computed together.

    They have one K, and either all or none of their runs train the head: the arithmetic of a row then
    does not depend on which other runs share the micro-batch. Rows beyond the segments are padding.
    """

    datums: tuple[HeadDatum, ...]  # those with a target, in order
    rows_M: Int64[Tensor, " M"]  # packed rows
    targets_MK: Int64[Tensor, "M K"]
    needs_grad_M: Bool[Tensor, " M"]  # on the host
    segments: tuple[Segment, ...]  # of head rows, one for each group


@dataclass(frozen=True, slots=True)
class _Part:
    """Head rows of a prefix, or of what follows it in one datum."""

    rows_M: NDArray[np.int64]  # packed rows
    targets_MK: NDArray[np.int64]
    needs_grad_M: NDArray[np.bool_]


def plan_head(model: BaseModel, groups: Sequence[PackedGroup]) -> list[HeadCall]:
    """The head calls of a micro-batch, in datum order; datums without any target are in none."""
    starts = [segment.start for segment in group_segments(groups)]
    wanted = [each for each in zip(groups, starts, strict=True) if any(map(_has_targets, each[0].datums))]
    kinds = groupby(wanted, key=lambda each: (each[0].trains_head, each[0].datums[0].targets.ids_MK.shape[1]))
    return [_head_call(model, list(chosen)) for _, chosen in kinds]


def _has_targets(packed: PackedDatum) -> bool:
    return len(packed.targets.rows_M) > 0


def _head_call(model: BaseModel, placed: Sequence[tuple[PackedGroup, int]]) -> HeadCall:
    parts = [_parts(group, start) for group, start in placed]
    sizes = [sum(len(part.rows_M) for part in each) for each in parts]
    padding = model.pad_rows(sum(sizes)) - sum(sizes)
    flat = [part for each in parts for part in each]
    groups = [group for group, _ in placed]
    segments = tuple(segments_of(groups, sizes))
    return HeadCall(
        datums=tuple(
            datum
            for group, each, segment in zip(groups, parts, segments, strict=True)
            for datum in _datums(group, each, segment.start)
        ),
        rows_M=to_device(_padded([part.rows_M for part in flat], padding, 0), model.device),
        targets_MK=to_device(_padded([part.targets_MK for part in flat], padding, ABSENT), model.device),
        needs_grad_M=_padded([part.needs_grad_M for part in flat], padding, 0),
        segments=segments,
    )


def _parts(group: PackedGroup, start: int) -> list[_Part]:
    """The prefix's head rows, then each datum's own."""
    targets = group.datums[0].targets
    shared = int(np.searchsorted(targets.rows_M, group.prefix))
    needs_grad_M = np.logical_or.reduce([packed.needs_grad_M[:shared] for packed in group.datums])
    parts = [_Part(targets.rows_M[:shared] + start, targets.ids_MK[:shared], needs_grad_M)]
    for packed in group.datums:
        # `start`: where the datum's first token would be if its prefix stood right before its own rows.
        rows_M = packed.targets.rows_M[shared:] + start
        parts.append(_Part(rows_M, packed.targets.ids_MK[shared:], packed.needs_grad_M[shared:]))
        start += packed.datum.num_tokens - group.prefix
    return parts


def _datums(group: PackedGroup, parts: Sequence[_Part], start: int) -> Iterator[HeadDatum]:
    """The group's datums that have a target; `start`: the group's first row in the call."""
    shared_M = torch.arange(start, start + len(parts[0].rows_M))
    start += len(shared_M)
    for packed, part in zip(group.datums, parts[1:], strict=True):
        own_M = torch.arange(start, start + len(part.rows_M))
        start += len(own_M)
        if _has_targets(packed):
            yield HeadDatum(group.job, packed, torch.cat([shared_M, own_M]))


def _padded(parts: Sequence[NDArray[np.generic]], padding: int, value: int) -> Tensor:
    values = np.concatenate(parts)
    widths = [(0, padding)] + [(0, 0)] * (values.ndim - 1)
    return torch.from_numpy(np.pad(values, widths, constant_values=value))
