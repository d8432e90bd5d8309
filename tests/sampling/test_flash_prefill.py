"""Prompt slices in one call equal dense attention over whole sequences."""

import pytest
import torch
from torch import Tensor

from openrl.sampling.flash_prefill import FlashPrefill
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention
from openrl.sampling.spans import Span
from tests.model.test_attention import dense
from tests.model.test_flash_attention import operators  # noqa: F401  # pyright: ignore[reportUnusedImport]

SCALE = 0.25
STEPS: dict[str, list[tuple[int, int]]] = {  # (start, length) of each sequence's slice
    "first slices": [(0, 5), (0, 70), (0, 33)],
    "later slices": [(3, 5), (64, 70), (17, 2)],
    "first, later and single rows": [(0, 20), (40, 1), (0, 2), (31, 40), (0, 1), (90, 7)],
}


def step_of(slices: list[tuple[int, int]], head_dim: int, dtype: torch.dtype) -> tuple[KVCache, list[Span], Tensor]:
    """A cache that holds what lies before the slices, their spans, and q, k and v side by side of all positions."""
    cache = KVCache(1, 64, 16, 2, head_dim, dtype, torch.device("cpu"))
    longest = max(start + length for start, length in slices)
    qkv = torch.randn(len(slices), longest, 8, head_dim, dtype=dtype)
    spans: list[Span] = []
    for index, (start, length) in enumerate(slices):
        table = tuple(range(index, 64, len(slices)))
        if start:
            before = PagedAttention(cache, [Span(0, 0, start, table)], 4)
            cache.write(0, before._places, qkv[index, :start, 4:6], qkv[index, :start, 6:])
        spans.append(Span(sum(span.length for span in spans), start, length, table))
    return cache, spans, qkv


def packed(spans: list[Span], qkv: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = [qkv[index, span.start : span.start + span.length] for index, span in enumerate(spans)]
    return torch.cat([*rows, torch.randn(padding, 8, qkv.shape[-1]).to(qkv)]).split([4, 2, 2], 1)  # pyright: ignore[reportReturnType]


def expected_of(spans: list[Span], qkv: Tensor, window: int | None) -> list[Tensor]:
    outs: list[Tensor] = []
    for index, span in enumerate(spans):
        q, k, v = qkv[index, : span.start + span.length].split([4, 2, 2], 1)
        outs.append(dense(q[span.start :], k, v, span.start, SCALE, window))
    return outs


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("slices", STEPS.values(), ids=STEPS.keys())
def test_rows_of_slices_are_those_of_dense_attention(slices: list[tuple[int, int]], window: int | None):
    torch.manual_seed(0)
    cache, spans, qkv = step_of(slices, 16, torch.float64)
    q, k, v = packed(spans, qkv, 3)
    num_rows = q.shape[0] - 3
    cache.write(0, PagedAttention(cache, spans, 4)._places, k[:num_rows], v[:num_rows])
    out = FlashPrefill(cache, spans).attend(0, q, k, v, SCALE, window)
    assert not out[num_rows:].any()
    for span, expected in zip(spans, expected_of(spans, qkv, window), strict=True):
        if span.length > 1:
            assert (out[span.row : span.row + span.length] - expected).abs().max() < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("slices", STEPS.values(), ids=STEPS.keys())
def test_a_step_on_a_gpu_stays_within_the_noise_of_bf16(
    slices: list[tuple[int, int]], window: int | None, head_dim: int
):
    torch.manual_seed(1)
    _, spans, qkv = step_of(slices, head_dim, torch.float32)
    qkv = qkv.bfloat16().float()
    cache = KVCache(1, 64, 16, 2, head_dim, torch.bfloat16, torch.device("cuda"))
    for index, span in enumerate(spans):
        if span.start:
            before = qkv[index, : span.start].to("cuda", torch.bfloat16)
            earlier = PagedAttention(cache, [Span(0, 0, span.start, span.blocks)], 4)
            earlier.attend(0, before[:, :4], before[:, 4:6], before[:, 6:], SCALE, window)
    q, k, v = (x.to("cuda", torch.bfloat16) for x in packed(spans, qkv, 3))
    out = PagedAttention(cache, spans, 4).attend(0, q, k, v, SCALE, window).float().cpu()
    assert not out[-3:].any()
    for span, expected in zip(spans, expected_of(spans, qkv, window), strict=True):
        got = out[span.row : span.row + span.length]
        assert (got - expected).abs().max() < 5e-2 * expected.abs().max()
