"""Lays out the datums of one micro-batch as packed rows.

A group's rows are its prefix once, then what follows the prefix in each datum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from openrl.model.attention import PackedAttention
from openrl.model.base_model import BaseModel
from openrl.model.batch import Adapters, Batch, Segment
from openrl.model.transfers import to_device
from openrl.protocol.datum import Datum
from openrl.training.loss_inputs import Targets


@dataclass(frozen=True, slots=True)
class PackedDatum:
    """One datum of a micro-batch."""

    number: int  # in its job
    datum: Datum
    targets: Targets
    needs_grad_M: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """Datums of one job that share their first `prefix` rows; see PrefixGroup."""

    job: int
    slot: int
    trains_head: bool
    prefix: int
    datums: tuple[PackedDatum, ...]

    @property
    def num_rows(self) -> int:
        """The prefix once, and what follows it in each datum."""
        return self.prefix + sum(packed.datum.num_tokens - self.prefix for packed in self.datums)


def group_segments(groups: Sequence[PackedGroup]) -> tuple[Segment, ...]:
    """The packed rows of each group, in order."""
    return tuple(segments_of(groups, [group.num_rows for group in groups]))


def segments_of(groups: Sequence[PackedGroup], lengths: Sequence[int]) -> Iterator[Segment]:
    """One segment for each group, of the given number of rows, side by side."""
    start = 0
    for group, length in zip(groups, lengths, strict=True):
        yield Segment(start, length, group.slot, group.job)
        start += length


def sequence_segments(groups: Sequence[PackedGroup]) -> tuple[Segment, ...]:
    """The packed rows that follow each other in a sequence: prefixes, and what goes on from them."""
    segments: list[Segment] = []
    start = 0
    for group in groups:
        parent = -1
        if group.prefix:
            parent = len(segments)
            segments.append(Segment(start, group.prefix, group.slot, group.job))
            start += group.prefix
        for packed in group.datums:
            length = packed.datum.num_tokens - group.prefix
            segments.append(Segment(start, length, group.slot, group.job, parent))
            start += length
    return tuple(segments)


def merge_jobs(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """One segment for the neighbouring groups of a job: fewer and larger products in the adapters.

    The gradient of a job is then summed over rows in one product, whose rounding depends on which of the
    job's groups share the micro-batch.
    """
    merged: list[Segment] = []
    for _, neighbours in groupby(segments, key=lambda segment: segment.job):
        run = list(neighbours)
        merged.append(Segment(run[0].start, sum(each.length for each in run), run[0].slot, run[0].job))
    return tuple(merged)


def build_batch(
    model: BaseModel, groups: Sequence[PackedGroup], adapters: Adapters, merges_jobs: bool, recomputed_layers: int = 0
) -> Batch:
    """The packed rows of the groups, in order, padded to the row count that the model asks for.

    Adapters see a group as one segment: it is never split, so their products may sum over all its rows.
    """
    segments = group_segments(groups)
    num_rows = sum(segment.length for segment in segments)
    pad = np.zeros(model.pad_rows(num_rows) - num_rows, np.int64)
    token_ids = [part for group in groups for part in _rows(group, [each.datum.tokens for each in group.datums])]
    positions = [part for group in groups for part in _rows(group, _positions(group))]
    return Batch(
        token_ids_T=to_device(torch.from_numpy(np.concatenate([*token_ids, pad])), model.device),
        position_ids_T=to_device(torch.from_numpy(np.concatenate([*positions, pad])), model.device),
        segments=merge_jobs(segments) if merges_jobs else segments,
        attention=PackedAttention(sequence_segments(groups), deterministic=not merges_jobs),
        adapters=adapters,
        recomputed_layers=recomputed_layers,
    )


def _positions(group: PackedGroup) -> list[NDArray[np.int64]]:
    return [np.arange(packed.datum.num_tokens) for packed in group.datums]


def _rows(group: PackedGroup, values: Sequence[NDArray[np.integer]]) -> list[NDArray[np.int64]]:
    """Per-token values of the group's datums as those of its rows, in parts."""
    parts = [values[0][: group.prefix], *(each[group.prefix :] for each in values)]
    return [part.astype(np.int64, copy=False) for part in parts]
