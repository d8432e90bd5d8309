"""Attention of one row a sequence over the paged cache, all of it on the device.

Legend: T packed rows, B sequences, N query heads, K key-value heads, H head dim, P pages of a sequence, S splits.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from openrl.sampling.cache_kernels import NOWHERE, write_rows
from openrl.sampling.decode_kernels import MERGE_SPLITS, decode_kernel, merge_kernel
from openrl.sampling.kv_cache import KVCache

NO_WINDOW = 2**30
MIN_HEADS = 16
"""Rows of the smallest matrix product."""

# Triton's launch arguments are not in its types.
_decode: Any = decode_kernel
_merge: Any = merge_kernel


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How the kernel cuts its work; fixed for a shape, as a row's bits depend on it."""

    split_keys: int  # keys of one program
    tile_keys: int  # keys of one step of its loop
    num_warps: int
    num_stages: int  # Triton's; 2 n + 1 give n tiles of room, as a tile's pages are looked up before


def tiles_of(cache: KVCache) -> DecodeTiles:
    """The cut for the cache's shape.

    Tiles of 16 KB of keys, three of them and of values at once: two programs a multiprocessor then have 128 KB on
    their way. The fewer key-value heads, the shorter the splits, so that 64 rows make programs for all of them.
    """
    key_bytes = max(power_of_two(cache.head_dim), MIN_HEADS) * cache.dtype.itemsize
    tile_keys = max(16, min(64, 2**14 // key_bytes))
    split_keys = max(128, min(512, 64 * cache.num_kv_heads))
    return DecodeTiles(split_keys, tile_keys, num_warps=4, num_stages=7)


def power_of_two(size: int) -> int:
    """The smallest that is not below `size`."""
    return 1 << (size - 1).bit_length()


class DecodeAttention:
    """Row b of the packed batch is the last token of sequence b; implements model.batch.Attention.

    `tables_BP` holds each sequence's blocks, `lengths_B` its tokens with the new one; both may change in place between
    calls, which read them on the device: a CUDA graph can capture `attend`. A row of length 0 is padding: it gets
    zeros and nothing is written. No row may be longer than `num_splits` splits hold, see `splits_for`.
    With `rows_B`, sequence b is packed row rows_B[b] instead, and `attend_into` leaves the other rows alone.
    """

    def __init__(
        self,
        cache: KVCache,
        tables_BP: Int32[Tensor, "B P"],
        lengths_B: Int32[Tensor, " B"],
        num_splits: int,
        rows_B: Int32[Tensor, " B"] | None = None,
        tiles: DecodeTiles | None = None,
    ) -> None:
        self._cache = cache
        self._tables_BP = tables_BP
        self._lengths_B = lengths_B
        self._rows_B = rows_B
        self._num_splits = num_splits
        self._tiles = tiles or tiles_of(cache)
        self._parts_BNSH: Float[Tensor, "B N S H"] | None = None
        self._lse_BNS: Float[Tensor, "B N S"] | None = None

    @staticmethod
    def splits_for(cache: KVCache, longest: int, tiles: DecodeTiles | None = None) -> int:
        """The bucket of `num_splits`, a power of two, for sequences of up to `longest` tokens, the new one included."""
        split_keys = (tiles or tiles_of(cache)).split_keys
        return power_of_two(max(1, math.ceil((longest - 1) / split_keys)))

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """See model.batch.Attention. Also writes the rows' keys and values to the cache."""
        is_whole = self._rows_B is None and q_TNH.shape[0] == self._lengths_B.shape[0]
        make = torch.empty if is_whole else torch.zeros
        out_TNH = make(q_TNH.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        self.attend_into(out_TNH, layer, q_TNH, k_TKH, v_TKH, scale, window)
        return out_TNH

    def attend_into(
        self,
        out_TNH: Float[Tensor, "T N H"],
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> None:
        """`attend` into a contiguous tensor; rows that are no sequence's keep what they hold."""
        cache, tiles = self._cache, self._tiles
        num_rows = self._lengths_B.shape[0]
        num_heads, head_dim = q_TNH.shape[1:]
        num_splits = self._num_splits
        if window is not None:
            num_splits = min(num_splits, max(1, math.ceil((window - 1) / tiles.split_keys)))
        keys, values = cache.layer(layer)
        parts, lse = self._scratch(num_heads, out_TNH) if num_splits > 1 else (out_TNH, out_TNH)
        rows = self._lengths_B if self._rows_B is None else self._rows_B
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_TNH, k_TKH, v_TKH))
        per_group = num_heads // cache.num_kv_heads
        block_h = max(MIN_HEADS, power_of_two(head_dim))
        seen = window or NO_WINDOW
        _decode[(cache.num_kv_heads, num_rows, num_splits)](
            q,
            k,
            v,
            out_TNH,
            keys,
            values,
            self._tables_BP,
            self._lengths_B,
            rows,
            parts,
            lse,
            scale * math.log2(math.e),
            seen,
            *(stride for x in (q, k, v) for stride in x.stride()[:2]),
            self._tables_BP.stride(0),
            NUM_KV_HEADS=cache.num_kv_heads,
            PER_GROUP=per_group,
            HEAD_DIM=head_dim,
            PAGE_TOKENS=cache.block_tokens,
            SPLIT_KEYS=tiles.split_keys,
            TILE_KEYS=tiles.tile_keys,
            BLOCK_R=max(MIN_HEADS, power_of_two(per_group)),
            BLOCK_H=block_h,
            HAS_ROWS=self._rows_B is not None,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
        if num_splits > 1:
            _merge[(num_heads, num_rows)](
                out_TNH,
                parts,
                lse,
                self._lengths_B,
                rows,
                seen,
                num_splits,
                HEAD_DIM=head_dim,
                SPLIT_KEYS=tiles.split_keys,
                BLOCK_S=MERGE_SPLITS,
                BLOCK_H=block_h,
                HAS_ROWS=self._rows_B is not None,
                num_warps=1,
            )

    def _scratch(self, num_heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Room for parts, made by the first layer that needs it and used by all."""
        if self._parts_BNSH is None or self._lse_BNS is None:
            size = (self._lengths_B.shape[0], num_heads, self._num_splits)
            self._parts_BNSH = torch.empty((*size, like.shape[-1]), dtype=torch.float32, device=like.device)
            self._lse_BNS = torch.empty(size, dtype=torch.float32, device=like.device)
        return self._parts_BNSH, self._lse_BNS


class SliceAttention:
    """Decode attention of rows that may follow each other in one sequence: all are in the cache before any looks."""

    def __init__(
        self, cache: KVCache, tables_BP: Int32[Tensor, "B P"], lengths_B: Int32[Tensor, " B"], decode: DecodeAttention
    ) -> None:
        self._cache = cache
        self._decode = decode
        last_B = (lengths_B - 1).clamp(min=0).long()
        blocks_B = tables_BP.gather(1, (last_B // cache.block_tokens)[:, None])[:, 0].long()
        places = cache.places_of(blocks_B, last_B % cache.block_tokens).view(len(last_B), -1)
        self._places = torch.where(lengths_B[:, None] > 0, places, NOWHERE).flatten()

    def attend(
        self,
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        k_TKH: Float[Tensor, "T K H"],
        v_TKH: Float[Tensor, "T K H"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "T N H"]:
        """See model.batch.Attention. A row's own key and value are then stored twice, to the same bits."""
        write_rows(*self._cache.layer(layer), self._places, k_TKH, v_TKH)
        return self._decode.attend(layer, q_TNH, k_TKH, v_TKH, scale, window)
