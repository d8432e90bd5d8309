"""Keys and values of all layers in pages.

Legend: P pages (blocks), K key-value heads, E tokens of one page, H head dim, T rows, G gathered pages.

Pages of one head are contiguous, so that gathering a sequence's pages gives [K, tokens, H] in one copy.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openrl.model.memory import lazy_zeros


class KVCache:
    """`keys[layer]` and `values[layer]`: [P * K, E, H]; page p of head k is row p * K + k."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = block_tokens
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = device
        size = (num_blocks * num_kv_heads, block_tokens, head_dim)
        self._keys = [lazy_zeros(size, dtype, device) for _ in range(num_layers)]
        self._values = [lazy_zeros(size, dtype, device) for _ in range(num_layers)]
        self._heads_K = torch.arange(num_kv_heads, device=device)

    def layer(self, layer: int) -> tuple[Float[Tensor, "PK E H"], Float[Tensor, "PK E H"]]:
        """All keys and values of a layer, for kernels that find the pages themselves."""
        return self._keys[layer], self._values[layer]

    def rows_of(self, blocks_G: Int64[Tensor, " G"]) -> Int64[Tensor, "K G"]:
        """Where the pages of these blocks are, head by head."""
        return blocks_G * self.num_kv_heads + self._heads_K[:, None]

    def places_of(self, blocks_T: Int64[Tensor, " T"], offsets_T: Int64[Tensor, " T"]) -> Int64[Tensor, " TK"]:
        """Where `write` puts the rows of tokens at these offsets of these blocks."""
        pages_TK = blocks_T[:, None] * self.num_kv_heads + self._heads_K
        return (pages_TK * self.block_tokens + offsets_T[:, None]).flatten()

    def write(
        self, layer: int, places: Int64[Tensor, " TK"], k_TKH: Float[Tensor, "T K H"], v_TKH: Float[Tensor, "T K H"]
    ) -> None:
        """Store new keys and values at `places_of` their tokens."""
        if self.device.type == "cuda":
            from openrl.sampling.cache_kernels import write_rows  # noqa: PLC0415  (triton is there only where CUDA is)

            write_rows(self._keys[layer], self._values[layer], places, k_TKH, v_TKH)
            return
        head_dim = k_TKH.shape[-1]
        for store, new_TKH in ((self._keys[layer], k_TKH), (self._values[layer], v_TKH)):
            store.view(-1, head_dim).index_copy_(0, places, new_TKH.reshape(-1, head_dim))

    def read(self, layer: int, rows: Int64[Tensor, " R"]) -> tuple[Float[Tensor, "R E H"], Float[Tensor, "R E H"]]:
        """Keys and values of pages, see `rows_of`."""
        return self._keys[layer].index_select(0, rows), self._values[layer].index_select(0, rows)

    def gather(self, layer: int, places: Int64[Tensor, " TK"]) -> tuple[Float[Tensor, "T K H"], Float[Tensor, "T K H"]]:
        """Keys and values of tokens, see `places_of`."""
        stores = self._keys[layer], self._values[layer]
        k_TKH, v_TKH = (
            store.view(-1, store.shape[-1]).index_select(0, places).view(-1, self.num_kv_heads, store.shape[-1])
            for store in stores
        )
        return k_TKH, v_TKH

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero the values of blocks: a NaN left by another sequence times the weight 0 would be NaN.

        Only on the CPU: what reads pages on a GPU leaves alone, or masks, all that is no token of the sequence.
        """
        if blocks and self.device.type == "cpu":
            rows = self.rows_of(torch.tensor(blocks, device=self.device)).flatten()
            for values in self._values:
                values.index_fill_(0, rows, 0.0)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, given as (from, to); all are read before any is written."""
        if pairs:
            pairs_G2 = torch.tensor(pairs, device=self.device)
            sources, targets = (self.rows_of(pairs_G2[:, side]).flatten() for side in (0, 1))
            for store in (*self._keys, *self._values):
                store.index_copy_(0, targets, store.index_select(0, sources))


def bytes_per_block(num_layers: int, block_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Memory that one block takes over all layers."""
    return 2 * num_layers * block_tokens * num_kv_heads * head_dim * dtype.itemsize
