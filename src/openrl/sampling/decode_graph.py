"""Decodes on the device without the host: one step of many sequences, captured in a CUDA graph and replayed.

Legend: R rows of the buffers, B rows of a bucket, P pages of a sequence, K steps, V vocab.

A step embeds every row's token, runs the layers and the head, chooses the next token and appends it to the buffers, so
that the next replay goes on from there. Rows beyond the burst, and those that have taken their tokens, have length 0:
they compute something that nobody reads and write nothing. Shapes come in buckets of rows and of attention splits; a
graph is captured when its bucket is first met, and all share one pool of memory, as one runs at a time.

Short prompts pass through the same graphs, a row for each token: launched one by one, the kernels of a pass over few
rows take ten times as long as they run.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.batch import BASE_SLOT, Adapters, Attention, Batch, Segment
from openrl.model.lora import merge_by_slot
from openrl.sampling.batcher import Slice
from openrl.sampling.choice import GREEDY, ChoosePlain, heat_of
from openrl.sampling.decode_loop import Burst, GoesOn, StepTokens
from openrl.sampling.decode_state import DecodeRows, DecodeState
from openrl.sampling.sequence import Sequence as SampledSequence
from openrl.telemetry.logs import get_logger

MAX_GRAPHS = 48
"""Captured at most; the one unused for longest goes. Each keeps its launches' parameters: some megabytes."""
_FIRST_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128)
SLICE_BUCKETS = (16, 64, 128, 256)
"""Rows of prompts that are computed here, and not by the model runner."""
MAX_SLICE_KEYS = 2**16
"""Keys that such rows look at together, at most: each row reads those before it for itself."""
STEPS_AHEAD = 1
"""Steps under way behind the one that the host waits for: the device does not wait for the host."""
_WARM_UPS = 2

_log = get_logger(__name__)


class AttentionOver(Protocol):
    """Makes the attention of a bucket; see sampling.decode_attention."""

    def __call__(self, tables_BP: Tensor, lengths_B: Tensor, num_splits: int, *, are_slices: bool) -> Attention:
        """`are_slices`: rows may follow each other in one sequence."""
        ...

    def splits_for(self, longest: int) -> int:
        """The bucket of splits for sequences of so many tokens."""
        ...


class DecodeAdapters(Protocol):
    """The adapters of a bucket's rows, which lie on the device."""

    @property
    def can_capture(self) -> bool:
        """Whether a graph with them follows `refill`."""
        ...

    @property
    def generation(self) -> int:
        """Changes when what graphs have captured no longer holds."""
        ...

    def of_bucket(self, num_tiles: int) -> Adapters:
        """Those that the last `refill` with this answer says."""
        ...

    def refill(self, segments: Sequence[Segment]) -> int:
        """Say which rows use which slot; returns the bucket of tiles that they take, at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a loop is made of besides the model."""

    attention: AttentionOver
    adapters: DecodeAdapters
    choose: ChoosePlain
    max_rows: int
    max_pages: int  # of one sequence


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a graph is good for."""

    num_rows: int
    num_splits: int
    num_tiles: int  # of rows of one adapter; 0: all rows are the base model's
    is_open: bool  # ends with the logits instead of a choice
    are_slices: bool = False  # several rows of a sequence


class GraphLoop:
    """See DecodeLoop. On CPU, and where a capture fails, the same steps run one by one."""

    takes_single_steps = True

    def __init__(self, model: BaseModel, parts: Parts) -> None:
        self._model = model
        self._parts = parts
        num_rows = max(bucket_of(parts.max_rows, parts.max_rows), SLICE_BUCKETS[-1])
        self._state = DecodeState(num_rows, parts.max_pages, model.vocab_size, model.device)
        self._graphs: OrderedDict[Bucket, torch.cuda.CUDAGraph] = OrderedDict()
        self._generation = parts.adapters.generation
        self._can_capture = model.device.type == "cuda"
        self._segments: tuple[Segment, ...] = ()

    def run(self, burst: Burst, goes_on: GoesOn) -> Iterator[StepTokens]:
        choices, state = burst.choices, self._state
        uniform_KB = np.where(choices.is_greedy.numpy(), GREEDY, burst.uniform_KB)
        state.fill(DecodeRows.of_sequences(burst.sequences, burst.num_tokens), uniform_KB, heat_of(choices).numpy())
        num_steps, num_rows = uniform_KB.shape
        longest = max(len(sequence.tokens) for sequence in burst.sequences) + num_steps - 1
        bucket = self._bucket(bucket_of(num_rows, self._parts.max_rows), longest, burst.slots)
        graph = self._graph(bucket)
        num_seen = 0
        for step in range(num_steps):
            if step and not goes_on():
                num_steps = step
                break
            self._run(graph, bucket)
            state.send(step, num_rows)
            if step >= STEPS_AHEAD:
                yield state.chosen(num_seen, num_rows)
                num_seen += 1
        for step in range(num_seen, num_steps):
            yield state.chosen(step, num_rows)

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> Float[Tensor, "B V"]:
        rows = DecodeRows.of_sequences(sequences, [1] * len(sequences))
        return self._open_step(rows, bucket_of(len(sequences), self._parts.max_rows), slots, are_slices=False)

    def slice_logits(self, slices: Sequence[Slice], slots: Sequence[int]) -> Float[Tensor, "T V"] | None:
        num_rows = sum(step.length for step in slices)
        num_keys = sum(step.length * (step.start + step.length) for step in slices)
        if num_rows > SLICE_BUCKETS[-1] or num_keys > MAX_SLICE_KEYS:
            return None
        row_slots = [slot for step, slot in zip(slices, slots, strict=True) for _ in range(step.length)]
        bucket_rows = next(rows for rows in SLICE_BUCKETS if num_rows <= rows)
        return self._open_step(DecodeRows.of_slices(slices), bucket_rows, row_slots, are_slices=True)

    def _open_step(self, rows: DecodeRows, bucket_rows: int, slots: Sequence[int], *, are_slices: bool) -> Tensor:
        """fp32 logits of the rows."""
        num_rows = len(rows.tokens)
        self._state.fill(rows, np.full((1, num_rows), GREEDY), np.ones(num_rows, np.float32))
        logits_RV = self._state.logits  # made before a capture
        bucket = self._bucket(bucket_rows, max(rows.lengths), slots, is_open=True, are_slices=are_slices)
        self._run(self._graph(bucket), bucket)
        return logits_RV[:num_rows]

    def _bucket(
        self, num_rows: int, longest: int, slots: Sequence[int], *, is_open: bool = False, are_slices: bool = False
    ) -> Bucket:
        """Where such rows belong; also tells the adapters whose rows they serve."""
        self._segments = tuple(merge_by_slot(Segment(row, 1, slot) for row, slot in enumerate(slots)))
        has_adapters = any(slot != BASE_SLOT for slot in slots)
        num_tiles = self._parts.adapters.refill(self._segments) if has_adapters else 0
        return Bucket(num_rows, self._parts.attention.splits_for(longest), num_tiles, is_open, are_slices)

    def _run(self, graph: torch.cuda.CUDAGraph | None, bucket: Bucket) -> None:
        if graph is None:
            self._step(bucket)
        else:
            graph.replay()

    def _graph(self, bucket: Bucket) -> torch.cuda.CUDAGraph | None:
        """The bucket's graph; None where its steps run one by one."""
        adapters = self._parts.adapters
        if self._generation != adapters.generation:
            self._generation = adapters.generation
            self._graphs.clear()
        if not self._can_capture or (bucket.num_tiles and not adapters.can_capture):
            return None
        if bucket not in self._graphs:
            try:
                self._graphs[bucket] = self._capture(bucket)
            except torch.OutOfMemoryError:
                self._graphs.clear()
                return None
            except RuntimeError as error:  # what torch raises for anything that a graph cannot hold
                _log.warning("decoding without graphs", error=str(error))
                self._can_capture = False
                return None
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        return self._graphs[bucket]

    def _capture(self, bucket: Bucket) -> torch.cuda.CUDAGraph:
        """Run the step with no row in use, so that kernels are loaded and nothing changes; then record it."""
        state = self._state
        kept = state.lengths_R.clone(), state.tokens_R.clone()
        state.lengths_R.zero_()
        try:
            return self._record(bucket)
        finally:
            state.lengths_R.copy_(kept[0])
            state.tokens_R.copy_(kept[1])
            state.at_1.zero_()

    def _record(self, bucket: Bucket) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self._model.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._step(bucket)
        return graph

    def _step(self, bucket: Bucket) -> None:
        """One token of every row that has one coming."""
        state = self._state
        lengths_B = state.lengths_R[: bucket.num_rows]
        tables_BP = state.tables_RP[: bucket.num_rows]
        adapters = self._parts.adapters.of_bucket(bucket.num_tiles) if bucket.num_tiles else None
        batch = Batch(
            token_ids_T=state.tokens_R[: bucket.num_rows],
            position_ids_T=(lengths_B - 1).clamp(min=0).long(),
            segments=self._segments,
            attention=self._parts.attention(tables_BP, lengths_B, bucket.num_splits, are_slices=bucket.are_slices),
            adapters=adapters,
        )
        hidden_BD = self._model.hidden(batch)
        logits_BV = self._model.logits(hidden_BD, adapters, self._segments)
        if bucket.is_open:
            state.logits[: bucket.num_rows].copy_(logits_BV)
        else:
            state.append(logits_BV, self._parts.choose)


def bucket_of(num_rows: int, max_rows: int) -> int:
    """The number of rows that so many are computed as."""
    for bucket in _FIRST_BUCKETS:
        if num_rows <= bucket:
            return bucket
    step = 32 if max_rows <= 256 else 64
    return -(-num_rows // step) * step
