"""Paged attention equals dense attention, bit by bit, however the rows are cut and grouped."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openrl.model.attention import PackedAttention
from openrl.model.batch import Segment
from openrl.sampling.grouped_attention import GroupedAttention
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention
from openrl.sampling.spans import Span

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16
LENGTHS = (5, 140, 300, 33, 129)
SCALE = 0.25


def qkv(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q_LNH = torch.randn(length, HEADS, HEAD_DIM, generator=generator)
    k_LKH, v_LKH = torch.randn(2, length, KV_HEADS, HEAD_DIM, generator=generator)
    return q_LNH, k_LKH, v_LKH


def dense(index: int, window: int | None) -> Tensor:
    q_LNH, k_LKH, v_LKH = qkv(LENGTHS[index], index)
    return PackedAttention((Segment(0, LENGTHS[index]),)).attend(0, q_LNH, k_LKH, v_LKH, SCALE, window)


def paged(cuts: list[list[int]], block_tokens: int, window: int | None) -> list[Tensor]:
    """Outputs by sequence when step i computes `cuts[i][s]` rows of sequence s."""
    cache = KVCache(1, 512 // block_tokens * 5, block_tokens, KV_HEADS, HEAD_DIM, torch.float32, torch.device("cpu"))
    tables = [tuple(range(index, cache_blocks(block_tokens) * 5, 5)) for index in range(5)]
    inputs = [qkv(length, index) for index, length in enumerate(LENGTHS)]
    done = [0] * 5
    outs: list[list[Tensor]] = [[] for _ in LENGTHS]
    for cut in cuts:
        spans: list[Span] = []
        rows: list[tuple[Tensor, ...]] = []
        for index, length in enumerate(cut):
            if length:
                spans.append(Span(sum(s.length for s in spans), done[index], length, tables[index]))
                rows.append(tuple(x[done[index] : done[index] + length] for x in inputs[index]))
        q_TNH, k_TKH, v_TKH = (
            torch.cat([*parts, parts[0][:1]]) for parts in zip(*rows, strict=True)
        )  # 1 row of padding
        out_TNH = PagedAttention(cache, spans, HEADS).attend(0, q_TNH, k_TKH, v_TKH, SCALE, window)
        assert not out_TNH[-1].any()
        for span, index in zip(spans, [i for i, length in enumerate(cut) if length], strict=True):
            outs[index].append(out_TNH[span.row : span.row + span.length])
            done[index] += span.length
    assert done == list(LENGTHS)
    return [torch.cat(parts) for parts in outs]


def cache_blocks(block_tokens: int) -> int:
    return 512 // block_tokens


CUTS: dict[str, list[list[int]]] = {
    "whole prompts": [list(LENGTHS)],
    "chunks": [[3, 64, 100, 33, 60], [2, 64, 100, 0, 69], [0, 12, 100, 0, 0]],
    "then single tokens together": [[1, 136, 296, 29, 125], *[[1] * 5] * 4],
}


@pytest.mark.parametrize("window", [None, 20, 150])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_paged_attention_has_the_bits_of_dense_attention(cuts: list[list[int]], window: int | None):
    for index, got in enumerate(paged(cuts, 16, window)):
        assert torch.equal(got, dense(index, window))


@pytest.mark.parametrize("block_tokens", [8, 24, 256])
def test_the_block_size_does_not_change_a_bit(block_tokens: int):
    for index, got in enumerate(paged(CUTS["then single tokens together"], block_tokens, 20)):
        assert torch.equal(got, dense(index, 20))


@pytest.mark.parametrize(("window", "lengths"), [(None, (1, 1, 1)), (20, (1, 1, 1)), (None, (7,))])
def test_what_others_left_in_pages_reaches_no_sequence_on_a_gpu(window: int | None, lengths: tuple[int, ...]):
    """The path of a GPU, which clears no pages, run on the CPU."""
    ends = (40, 77, 9)[: len(lengths)]
    cache = KVCache(1, 24, 16, KV_HEADS, HEAD_DIM, torch.float32, torch.device("cpu"))
    for store in cache.layer(0):
        store.fill_(float("nan"))
    spans: list[Span] = []
    queries: list[Tensor] = []
    expected: list[Tensor] = []
    for index, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        blocks = tuple(range(8 * index, 8 * index + 8))
        q_LNH, k_LKH, v_LKH = qkv(end, index)
        tokens = torch.arange(end)
        cache.write(0, cache.places_of(tokens // 16 + 8 * index, tokens % 16), k_LKH, v_LKH)
        spans.append(Span(index, end - length, length, blocks))
        queries.append(q_LNH[end - length :])
        whole = PackedAttention((Segment(0, end),)).attend(0, q_LNH, k_LKH, v_LKH, SCALE, window)
        expected.append(whole[end - length :])
    grouped = GroupedAttention(cache, spans, HEADS)
    group = grouped._group(spans, window)
    positions_BL = torch.stack(
        [torch.arange(s.start, s.start + s.length) - grouped._first_key(s, window) for s in spans]
    )
    group = replace(group, mask_BLC=grouped._mask(positions_BL, group.pages.numel() // len(spans) // KV_HEADS, window))
    got = grouped._attend_sdpa(0, group, torch.cat(queries), SCALE, window)
    assert (got - torch.cat(expected)).abs().max() < 1e-5
