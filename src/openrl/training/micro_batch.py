"""Lays out the datums of one micro-batch as packed rows, and plans what the head computes of them.

Legend: T packed rows, M head rows, K targets of one row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from openrl.model.attention import PackedAttention
from openrl.model.base_model import BaseModel
from openrl.model.batch import Adapters, Batch, Segment
from openrl.protocol.datum import Datum
from openrl.training.loss_inputs import ABSENT, Targets


@dataclass(frozen=True, slots=True)
class PackedDatum:
    """One datum of a micro-batch."""

    job: int
    slot: int
    trains_head: bool
    datum: Datum
    targets: Targets
    needs_grad_M: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class HeadCall:
    """Datums whose log-probabilities are computed together.

    They have one K, and either all or none of their runs train the head: the arithmetic of a row then
    does not depend on which other runs share the micro-batch. Rows beyond the segments are padding.
    """

    datums: tuple[int, ...]  # indices into the micro-batch
    rows_M: Int64[Tensor, " M"]  # packed rows
    targets_MK: Int64[Tensor, "M K"]
    needs_grad_M: Bool[Tensor, " M"]
    segments: tuple[Segment, ...]  # of head rows, one for each datum


def datum_segments(datums: Sequence[PackedDatum]) -> tuple[Segment, ...]:
    """The packed rows of each datum, in order."""
    return tuple(_segments(datums, [packed.datum.num_tokens for packed in datums]))


def merge_jobs(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """One segment for the neighbouring datums of a job: fewer and larger products in the adapters.

    The gradient of a job is then summed over rows in one product, whose rounding depends on which of the
    job's datums share the micro-batch.
    """
    merged: list[Segment] = []
    for _, neighbours in groupby(segments, key=lambda segment: segment.job):
        run = list(neighbours)
        merged.append(Segment(run[0].start, sum(each.length for each in run), run[0].slot, run[0].job))
    return tuple(merged)


def build_batch(model: BaseModel, datums: Sequence[PackedDatum], adapters: Adapters, merges_jobs: bool) -> Batch:
    """The packed rows of the datums, in order, padded to the row count that the model asks for."""
    segments = datum_segments(datums)
    num_rows = sum(segment.length for segment in segments)
    padding = model.pad_rows(num_rows) - num_rows
    token_ids = [packed.datum.tokens.astype(np.int64) for packed in datums]
    positions = [np.arange(packed.datum.num_tokens) for packed in datums]
    pad = np.zeros(padding, np.int64)
    return Batch(
        token_ids_T=torch.from_numpy(np.concatenate([*token_ids, pad])).to(model.device),
        position_ids_T=torch.from_numpy(np.concatenate([*positions, pad])).to(model.device),
        segments=merge_jobs(segments) if merges_jobs else segments,
        attention=PackedAttention(segments),
        adapters=adapters,
    )


def plan_head(model: BaseModel, datums: Sequence[PackedDatum]) -> list[HeadCall]:
    """The head calls of a micro-batch, in datum order; datums without any target are in none."""
    wanted = [index for index, packed in enumerate(datums) if len(packed.targets.rows_M)]
    kinds = groupby(wanted, key=lambda index: (datums[index].trains_head, datums[index].targets.ids_MK.shape[1]))
    starts = [segment.start for segment in datum_segments(datums)]
    return [_head_call(model, datums, starts, list(indices)) for _, indices in kinds]


def _head_call(model: BaseModel, datums: Sequence[PackedDatum], starts: Sequence[int], indices: list[int]) -> HeadCall:
    chosen = [datums[index] for index in indices]
    sizes = [len(packed.targets.rows_M) for packed in chosen]
    padding = model.pad_rows(sum(sizes)) - sum(sizes)
    rows = [datums[index].targets.rows_M + starts[index] for index in indices]
    targets_MK = np.concatenate([packed.targets.ids_MK for packed in chosen])
    return HeadCall(
        datums=tuple(indices),
        rows_M=_padded(np.concatenate(rows), padding, 0).to(model.device),
        targets_MK=_padded(targets_MK, padding, ABSENT).to(model.device),
        needs_grad_M=_padded(np.concatenate([packed.needs_grad_M for packed in chosen]), padding, 0).to(model.device),
        segments=tuple(_segments(chosen, sizes)),
    )


def _segments(datums: Sequence[PackedDatum], lengths: Sequence[int]) -> Iterator[Segment]:
    start = 0
    for packed, length in zip(datums, lengths, strict=True):
        yield Segment(start, length, packed.slot, packed.job)
        start += length


def _padded(values: NDArray[np.generic], padding: int, value: int) -> Tensor:
    widths = [(0, padding)] + [(0, 0)] * (values.ndim - 1)
    return torch.from_numpy(np.pad(values, widths, constant_values=value))
