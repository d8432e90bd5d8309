"""Puts the decode loop together for CUDA; the only module that brings its Triton kernels in.

Legend: B sequences, P pages of a sequence.
"""

from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.model.lora import AdapterBank
from openrl.sampling.choice_kernels import choose_plain
from openrl.sampling.decode_adapters import decode_adapters
from openrl.sampling.decode_attention import DecodeAttention, SliceAttention
from openrl.sampling.decode_graph import GraphLoop, Parts
from openrl.sampling.kv_cache import KVCache


class PagedDecode:
    """Attention over one cache; see decode_graph.AttentionOver."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def __call__(
        self, tables_BP: Tensor, lengths_B: Tensor, num_splits: int, *, are_slices: bool
    ) -> DecodeAttention | SliceAttention:
        decode = DecodeAttention(self._cache, tables_BP, lengths_B, num_splits)
        return SliceAttention(self._cache, tables_BP, lengths_B, decode) if are_slices else decode

    def splits_for(self, longest: int) -> int:
        return DecodeAttention.splits_for(self._cache, longest)


def create_graph_loop(model: BaseModel, cache: KVCache, bank: AdapterBank, max_rows: int, num_blocks: int) -> GraphLoop:
    """The loop for up to so many sequences."""
    max_pages = min(num_blocks, -(-model.context_length // cache.block_tokens) + 1)
    return GraphLoop(
        model, Parts(PagedDecode(cache), decode_adapters(bank, model.device), choose_plain, max_rows, max_pages)
    )
