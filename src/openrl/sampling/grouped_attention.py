"""Attention of spans over the pages of their sequences, in groups of one padded shape.

Legend: T packed rows, B sequences that attend together, N query heads, K key-value heads, H head dim,
P pages of one sequence, E tokens of one page, C keys (P * E), L rows of one sequence, R padded rows of a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openrl.model.attention import KEY_BLOCK, blocked_attention, group_positions, group_rows, ungroup_rows
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.spans import Span

HOST = torch.device("cpu")

GATHER_BYTES = 2**21
"""Keys gathered at once on CPU: bounds the memory of a step. Speed is the same from 2**20 to 2**24."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans of one length that attend in one call."""

    rows: slice | Tensor  # packed rows, B * L of them
    num_spans: int
    length: int
    pages: Int64[Tensor, " BKP"]  # rows of the cache
    positions_GR: Int64[Tensor, "G R"]  # G = B * K; counted from the first gathered key
    mask_BLC: Tensor | None  # CUDA only


class GroupedAttention:
    """Attention of spans group by group. Single rows go together, every longer span is a group of its own.

    On CPU a row's bits depend on its sequence alone: groups differ only in how many masked keys they carry.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span], num_heads: int) -> None:
        self._cache = cache
        self._spans = spans
        self._per_group = num_heads // cache.num_kv_heads
        self._groups: dict[int | None, list[_Group]] = {}  # by window: layers of a kind share them

    def attend_into(
        self,
        out_TNH: Float[Tensor, "T N H"],
        layer: int,
        q_TNH: Float[Tensor, "T N H"],
        scale: float,
        window: int | None,
    ) -> None:
        """Write the output of the spans' rows; their keys and values are in the cache."""
        if window not in self._groups:
            self._groups[window] = self._make_groups(window, q_TNH.shape[-1] * q_TNH.dtype.itemsize)
        for group in self._groups[window]:
            attend = self._attend_sdpa if q_TNH.is_cuda else self._attend_blocked
            out_TNH[group.rows] = attend(layer, group, q_TNH[group.rows], scale, window)

    def _make_groups(self, window: int | None, bytes_per_key: int) -> list[_Group]:
        """Single rows (decode) of like length go together; every longer span is a group of its own."""
        single = sorted((s for s in self._spans if s.length == 1), key=lambda s: self._num_keys(s, window))
        groups = [self._group([span], window) for span in self._spans if span.length > 1]
        while single:
            count = len(single)
            if self._cache.device.type == "cpu":
                count = self._num_fitting(single, window, bytes_per_key * self._cache.num_kv_heads)
            groups.append(self._group(single[:count], window))
            single = single[count:]
        return groups

    def _num_fitting(self, spans: list[Span], window: int | None, bytes_per_key: int) -> int:
        """How many of the first spans are of one padded length and fit GATHER_BYTES; at least one."""
        num_keys = self._num_keys(spans[0], window)
        alike = sum(self._num_keys(span, window) == num_keys for span in spans)
        return max(1, min(alike, GATHER_BYTES // (num_keys * bytes_per_key)))

    def _first_key(self, span: Span, window: int | None) -> int:
        """The first position to gather: all before it is out of every row's window."""
        return 0 if window is None else max(span.start - window + 1, 0) // self._alignment * self._alignment

    def _num_keys(self, span: Span, window: int | None) -> int:
        """Keys to gather, in whole key blocks."""
        num_keys = span.start + span.length - self._first_key(span, window)
        return -(-num_keys // self._alignment) * self._alignment

    @property
    def _alignment(self) -> int:
        """The smallest stretch of tokens that is whole in pages and in key blocks."""
        return math.lcm(KEY_BLOCK, self._cache.block_tokens)

    def _group(self, spans: list[Span], window: int | None) -> _Group:
        device = self._cache.device
        num_pages = max(self._num_keys(span, window) for span in spans) // self._cache.block_tokens
        tables: list[list[int]] = []
        positions: list[Tensor] = []
        for span in spans:
            first = self._first_key(span, window)
            table = list(span.blocks[first // self._cache.block_tokens :])[:num_pages]
            # Keys past the end are masked; a page of the sequence itself can hurt nobody else.
            tables.append(table + table[-1:] * (num_pages - len(table)))
            # Made on the host and moved once: a GPU would launch a kernel for every sequence.
            positions.append(group_positions(span.start - first, span.length, self._per_group, HOST))
        pages_BP = torch.tensor(tables, device=device)
        positions_BR = torch.stack(positions).to(device)
        rows_KBP = self._cache.rows_of(pages_BP.flatten()).view(self._cache.num_kv_heads, *pages_BP.shape)
        length = spans[0].length
        is_one = len(spans) == 1
        return _Group(
            rows=slice(spans[0].row, spans[0].row + length)
            if is_one
            else torch.tensor([span.row for span in spans], device=device),
            num_spans=len(spans),
            length=length,
            pages=rows_KBP.transpose(0, 1).flatten(),
            positions_GR=positions_BR.repeat_interleave(self._cache.num_kv_heads, 0),
            mask_BLC=self._mask(positions_BR[:, :length], pages_BP.shape[1], window) if device.type == "cuda" else None,
        )

    def _mask(self, positions_BL: Tensor, num_pages: int, window: int | None) -> Tensor:
        """Which keys each row may look at."""
        keys_C = torch.arange(num_pages * self._cache.block_tokens, device=positions_BL.device)
        distance_BLC = positions_BL[..., None] - keys_C
        return (distance_BLC >= 0) & (distance_BLC < (window or distance_BLC.shape[-1]))

    def _gather(self, layer: int, group: _Group) -> tuple[Tensor, Tensor]:
        """Keys and values [B * K, C, H] of a group."""
        k, v = self._cache.read(layer, group.pages)
        num_groups = group.num_spans * self._cache.num_kv_heads
        return k.view(num_groups, -1, k.shape[-1]), v.view(num_groups, -1, v.shape[-1])

    def _attend_blocked(
        self, layer: int, group: _Group, q_TNH: Tensor, scale: float, window: int | None
    ) -> Float[Tensor, "T N H"]:
        """Through the kernel that training uses too."""
        k_GCH, v_GCH = self._gather(layer, group)
        num_rows, num_heads, head_dim = q_TNH.shape
        if group.length == 1:
            # One row a sequence: heads of a group are neighbours already, no need to go span by span.
            q_GRH = q_TNH.reshape(-1, self._per_group, head_dim)
            q_GRH = torch.nn.functional.pad(q_GRH, (0, 0, 0, group.positions_GR.shape[1] - self._per_group))
            out_GRH, _ = blocked_attention(q_GRH, k_GCH, v_GCH, group.positions_GR, scale, window)
            return out_GRH[:, : self._per_group].reshape(num_rows, num_heads, head_dim)
        q_GRH = group_rows(q_TNH, self._cache.num_kv_heads)
        out_GRH, _ = blocked_attention(q_GRH, k_GCH, v_GCH, group.positions_GR, scale, window)
        return ungroup_rows(out_GRH, num_rows, num_heads)

    def _attend_sdpa(
        self, layer: int, group: _Group, q_TNH: Tensor, scale: float, window: int | None
    ) -> Float[Tensor, "T N H"]:
        """Through torch's fused kernels, all sequences of the group padded to one length."""
        del window
        num_heads, head_dim = q_TNH.shape[1:]
        split = (group.num_spans, self._cache.num_kv_heads, -1, head_dim)
        assert group.mask_BLC is not None, "made for CUDA"
        # What lies behind the sequence's tokens may be NaN, which no mask of scores stops.
        unseen_BC = ~group.mask_BLC.any(1)
        k_BKCH, v_BKCH = (
            x_GCH.view(split).masked_fill_(unseen_BC[:, None, :, None], 0.0) for x_GCH in self._gather(layer, group)
        )
        out_BNLH = torch.nn.functional.scaled_dot_product_attention(
            q_TNH.view(group.num_spans, group.length, num_heads, head_dim).transpose(1, 2),
            k_BKCH,
            v_BKCH,
            attn_mask=group.mask_BLC[:, None],
            scale=scale,
            enable_gqa=True,
        )
        return out_BNLH.transpose(1, 2).reshape(-1, num_heads, head_dim)
