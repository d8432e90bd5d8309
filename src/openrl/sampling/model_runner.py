"""Runs the base model over the slices of one step.

Legend: T packed rows, M chosen rows, D model dim, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.batch import Adapters, Batch, Segment
from openrl.model.lora import merge_by_slot
from openrl.sampling.batcher import Slice
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention
from openrl.sampling.spans import Span

LOGITS_BYTES = 2**26
"""fp32 logits of prompt tokens held at once."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Consecutive packed rows of one adapter slot."""

    start: int
    length: int
    slot: int

    @property
    def last(self) -> "RowRange":
        """The last row alone."""
        return RowRange(self.start + self.length - 1, 1, self.slot)


def row_ranges(slices: Sequence[Slice], slots: Sequence[int]) -> list[RowRange]:
    """Where the slices lie when they are packed one after the other."""
    ranges: list[RowRange] = []
    start = 0
    for step, slot in zip(slices, slots, strict=True):
        ranges.append(RowRange(start, step.length, slot))
        start += step.length
    return ranges


class ModelRunner:
    """Packs slices into one forward pass. Ranges must come sorted by slot: one adapter product serves a slot."""

    def __init__(self, model: BaseModel, cache: KVCache, adapters: Adapters) -> None:
        self._model = model
        self._cache = cache
        self._adapters = adapters

    @property
    def chunk_rows(self) -> int:
        """Rows of prompt logits that fit LOGITS_BYTES."""
        return self._model.pad_rows(max(LOGITS_BYTES // (4 * self._model.vocab_size), 1))

    def hidden(self, slices: Sequence[Slice], slots: Sequence[int]) -> Float[Tensor, "T D"]:
        """Hidden states of the slices' tokens, packed in order; writes their keys and values to the cache."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for step in slices:
            stop = step.start + step.length
            spans.append(Span(len(tokens), step.start, step.length, tuple(step.sequence.blocks)))
            tokens += step.sequence.tokens[step.start : stop]
            positions += range(step.start, stop)
        segments = [Segment(span.row, span.length, slot) for span, slot in zip(spans, slots, strict=True)]
        padding = [0] * (self._model.pad_rows(len(tokens)) - len(tokens))
        batch = Batch(
            token_ids_T=torch.tensor(tokens + padding, device=self._model.device),
            position_ids_T=torch.tensor(positions + padding, device=self._model.device),
            segments=tuple(merge_by_slot(segments)),
            attention=PagedAttention(self._cache, spans, self._model.num_heads),
            adapters=self._used_adapters(slots),
        )
        return self._model.hidden(batch)

    def logits(self, hidden_TD: Float[Tensor, "T D"], ranges: Sequence[RowRange]) -> Float[Tensor, "M V"]:
        """fp32 logits of the rows of the ranges, in order."""
        rows = [row for part in ranges for row in range(part.start, part.start + part.length)]
        segments: list[Segment] = []
        for part in ranges:
            start = segments[-1].start + segments[-1].length if segments else 0
            segments.append(Segment(start, part.length, part.slot))
        padding = [rows[0]] * (self._model.pad_rows(len(rows)) - len(rows))
        chosen_MD = hidden_TD[torch.tensor(rows + padding, device=hidden_TD.device)]
        adapters = self._used_adapters([part.slot for part in ranges])
        return self._model.logits(chosen_MD, adapters, tuple(merge_by_slot(segments)))[: len(rows)]

    def _used_adapters(self, slots: Sequence[int]) -> Adapters | None:
        """None where all rows are the base model's: the layers then skip the adapters."""
        return self._adapters if any(slot >= 0 for slot in slots) else None
