"""Puts the decode loop together for CUDA; the only module that brings its Triton kernels in.

Legend: B sequences, P pages of a sequence.
"""

from collections.abc import Sequence

from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.batch import Segment
from openrl.model.lora import AdapterBank
from openrl.sampling.choice_kernels import choose_plain
from openrl.sampling.decode_attention import DecodeAttention
from openrl.sampling.decode_graph import GraphLoop, Parts
from openrl.sampling.kv_cache import KVCache


class PagedDecode:
    """Attention over one cache; see decode_graph.AttentionOver."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def __call__(self, tables_BP: Tensor, lengths_B: Tensor, num_splits: int) -> DecodeAttention:
        return DecodeAttention(self._cache, tables_BP, lengths_B, num_splits)

    def splits_for(self, longest: int) -> int:
        return DecodeAttention.splits_for(self._cache, longest)


class SegmentAdapters:
    """Adapters that find their rows in a batch's segments: each step anew, so that no graph holds them."""

    can_capture = False
    generation = 0

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank

    def of_bucket(self, num_rows: int) -> AdapterBank:
        del num_rows
        return self._bank

    def refill(self, num_rows: int, segments: Sequence[Segment]) -> None:
        del num_rows, segments


def create_graph_loop(model: BaseModel, cache: KVCache, bank: AdapterBank, max_rows: int, num_blocks: int) -> GraphLoop:
    """The loop for up to so many sequences."""
    max_pages = min(num_blocks, -(-model.context_length // cache.block_tokens) + 1)
    return GraphLoop(model, Parts(PagedDecode(cache), SegmentAdapters(bank), choose_plain, max_rows, max_pages))
