"""Decodes on the device without the host: one step of many sequences, captured in a CUDA graph and replayed.

Legend: R rows of the buffers, B rows of a bucket, P pages of a sequence, K steps, V vocab.

A step embeds every row's token, runs the layers and the head, chooses the next token and appends it to the buffers, so
that the next replay goes on from there. Rows beyond the burst, and those that have taken their tokens, have length 0:
they compute something that nobody reads and write nothing. Shapes come in buckets of rows and of attention splits; a
graph is captured when its bucket is first met, and all share one pool of memory, as one runs at a time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.batch import BASE_SLOT, Adapters, Attention, Batch, Segment
from openrl.model.lora import merge_by_slot
from openrl.sampling.burst import MAX_STEPS
from openrl.sampling.choice import GREEDY, ChoosePlain, heat_of, is_greedy
from openrl.sampling.decode_loop import Burst, BurstTokens
from openrl.sampling.sequence import Sequence as SampledSequence
from openrl.telemetry.logs import get_logger

MAX_GRAPHS = 48
"""Captured at most; the one unused for longest goes. Each keeps its launches' parameters: some megabytes."""
_FIRST_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128)
_WARM_UPS = 2

_log = get_logger(__name__)


class AttentionOver(Protocol):
    """Makes the attention of a bucket; see sampling.decode_attention."""

    def __call__(self, tables_BP: Tensor, lengths_B: Tensor, num_splits: int) -> Attention: ...

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


class GraphLoop:
    """See DecodeLoop. On CPU, and where a capture fails, the same steps run one by one."""

    takes_single_steps = True

    def __init__(self, model: BaseModel, parts: Parts) -> None:
        self._model = model
        self._parts = parts
        self._state = _State(parts.max_rows, parts.max_pages, model.vocab_size, model.device)
        self._graphs: OrderedDict[Bucket, torch.cuda.CUDAGraph] = OrderedDict()
        self._generation = parts.adapters.generation
        self._can_capture = model.device.type == "cuda"
        self._segments: tuple[Segment, ...] = ()

    def run(self, burst: Burst) -> BurstTokens:
        choices = burst.choices
        uniform_KB = np.where(is_greedy(choices).numpy(), GREEDY, burst.uniform_KB)
        self._state.fill(burst.sequences, burst.num_tokens, uniform_KB, heat_of(choices).numpy())
        num_steps, num_rows = uniform_KB.shape
        longest = max(len(sequence.tokens) for sequence in burst.sequences) + num_steps - 1
        self._replay(self._bucket(num_rows, longest, burst.slots, is_open=False), num_steps)
        return self._state.chosen(num_steps, num_rows)

    def logits(self, sequences: Sequence[SampledSequence], slots: Sequence[int]) -> Float[Tensor, "B V"]:
        num_rows = len(sequences)
        self._state.fill(sequences, [1] * num_rows, np.full((1, num_rows), GREEDY), np.ones(num_rows, np.float32))
        longest = max(len(sequence.tokens) for sequence in sequences)
        logits_RV = self._state.logits  # made before a capture
        self._replay(self._bucket(num_rows, longest, slots, is_open=True), 1)
        return logits_RV[:num_rows]

    def _bucket(self, num_rows: int, longest: int, slots: Sequence[int], *, is_open: bool) -> Bucket:
        """Where such rows belong; also tells the adapters whose rows they serve."""
        rows = bucket_of(num_rows, self._parts.max_rows)
        self._segments = tuple(merge_by_slot(Segment(row, 1, slot) for row, slot in enumerate(slots)))
        has_adapters = any(slot != BASE_SLOT for slot in slots)
        num_tiles = self._parts.adapters.refill(self._segments) if has_adapters else 0
        return Bucket(rows, self._parts.attention.splits_for(longest), num_tiles, is_open)

    def _replay(self, bucket: Bucket, num_steps: int) -> None:
        graph = self._graph(bucket)
        for _ in range(num_steps):
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
            attention=self._parts.attention(tables_BP, lengths_B, bucket.num_splits),
            adapters=adapters,
        )
        hidden_BD = self._model.hidden(batch)
        logits_BV = self._model.logits(hidden_BD, adapters, self._segments)
        if bucket.is_open:
            state.logits[: bucket.num_rows].copy_(logits_BV)
        else:
            state.append(logits_BV, self._parts.choose)


class _State:
    """Buffers at fixed addresses: what a step reads and what it leaves for the next one."""

    def __init__(self, num_rows: int, num_pages: int, vocab: int, device: torch.device) -> None:
        rows = bucket_of(num_rows, num_rows)
        self._host = _HostRows(rows, num_pages, is_pinned=device.type == "cuda")
        self.tokens_R = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths_R = torch.zeros(rows, dtype=torch.int32, device=device)  # with the current token; 0: not in use
        self.tables_RP = torch.zeros(rows, num_pages, dtype=torch.int32, device=device)
        self.left_R = torch.zeros(rows, dtype=torch.int32, device=device)  # tokens that the row takes in this burst
        self.heat_R = torch.ones(rows, dtype=torch.float32, device=device)
        self.uniform_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.float64, device=device)
        self.at_1 = torch.zeros(1, dtype=torch.int64, device=device)  # steps done
        self.tokens_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.int64, device=device)
        self.logprobs_KR = torch.zeros(MAX_STEPS, rows, dtype=torch.float32, device=device)
        self._vocab = vocab

    @cached_property
    def logits(self) -> Float[Tensor, "R V"]:
        """Made when the first row asks for more than a plain choice."""
        return torch.zeros(self.tokens_R.shape[0], self._vocab, dtype=torch.float32, device=self.tokens_R.device)

    def fill(
        self,
        sequences: Sequence[SampledSequence],
        num_tokens: Sequence[int],
        uniform_KB: np.ndarray[tuple[int, int], np.dtype[np.float64]],
        heat_B: np.ndarray[tuple[int], np.dtype[np.float32]],
    ) -> None:
        """Take up these sequences, in few copies that wait for nothing."""
        host, num_rows, num_steps = self._host, len(sequences), uniform_KB.shape[0]
        host.fill(sequences, num_tokens)
        host.uniform_KR[:num_steps, :num_rows] = torch.from_numpy(uniform_KB)
        host.heat_R[:num_rows] = torch.from_numpy(heat_B)
        for device, pinned in (
            (self.tokens_R, host.tokens_R),
            (self.lengths_R, host.lengths_R),
            (self.left_R, host.left_R),
            (self.heat_R, host.heat_R),
            (self.tables_RP[:num_rows], host.tables_RP[:num_rows]),
            (self.uniform_KR[:num_steps], host.uniform_KR[:num_steps]),
        ):
            device.copy_(pinned, non_blocking=True)
        self.at_1.zero_()

    def append(self, logits_BV: Float[Tensor, "B V"], choose: ChoosePlain) -> None:
        """Choose every row's token and make it the current one."""
        num_rows = logits_BV.shape[0]
        uniform_B = self.uniform_KR.index_select(0, self.at_1)[0, :num_rows]
        tokens_B, logprobs_B = choose(logits_BV, self.heat_R[:num_rows], uniform_B)
        self.tokens_KR[:, :num_rows].index_copy_(0, self.at_1, tokens_B[None])
        self.logprobs_KR[:, :num_rows].index_copy_(0, self.at_1, logprobs_B[None])
        self.tokens_R[:num_rows].copy_(tokens_B)
        lengths_B, left_B = self.lengths_R[:num_rows], self.left_R[:num_rows]
        self.at_1.add_(1)
        goes_on_B = (lengths_B > 0) & (self.at_1 < left_B)
        lengths_B.copy_(torch.where(goes_on_B, lengths_B + 1, 0))

    def chosen(self, num_steps: int, num_rows: int) -> BurstTokens:
        """What the burst chose; waits for the device."""
        tokens_KR = self.tokens_KR[:num_steps].cpu().numpy()
        logprobs_KR = self.logprobs_KR[:num_steps].cpu().numpy()
        return BurstTokens(tokens_KR[:, :num_rows], logprobs_KR[:, :num_rows])


class _HostRows:
    """The host's side of the buffers, pinned; read by copies that end before the next burst is filled in."""

    def __init__(self, num_rows: int, num_pages: int, *, is_pinned: bool) -> None:
        self.tokens_R = torch.zeros(num_rows, dtype=torch.int64, pin_memory=is_pinned)
        self.lengths_R = torch.zeros(num_rows, dtype=torch.int32, pin_memory=is_pinned)
        self.left_R = torch.zeros(num_rows, dtype=torch.int32, pin_memory=is_pinned)
        self.heat_R = torch.ones(num_rows, dtype=torch.float32, pin_memory=is_pinned)
        self.tables_RP = torch.zeros(num_rows, num_pages, dtype=torch.int32, pin_memory=is_pinned)
        self.uniform_KR = torch.full((MAX_STEPS, num_rows), GREEDY, dtype=torch.float64, pin_memory=is_pinned)

    def fill(self, sequences: Sequence[SampledSequence], num_tokens: Sequence[int]) -> None:
        """Sequences in order; the rows after them are not in use."""
        num_rows = len(sequences)
        self.tokens_R.numpy()[:num_rows] = [sequence.tokens[-1] for sequence in sequences]
        lengths_R = self.lengths_R.numpy()
        lengths_R[:num_rows] = [len(sequence.tokens) for sequence in sequences]
        lengths_R[num_rows:] = 0
        self.left_R.numpy()[:num_rows] = num_tokens
        counts = [len(sequence.blocks) for sequence in sequences]
        blocks = np.fromiter(chain.from_iterable(sequence.blocks for sequence in sequences), np.int32, sum(counts))
        num_pages = max(counts)
        is_block = np.arange(num_pages) < np.array(counts)[:, None]
        self.tables_RP.numpy()[:num_rows, :num_pages][is_block] = blocks


def bucket_of(num_rows: int, max_rows: int) -> int:
    """The number of rows that so many are computed as."""
    for bucket in _FIRST_BUCKETS:
        if num_rows <= bucket:
            return bucket
    step = 32 if max_rows <= 256 else 64
    return -(-num_rows // step) * step
