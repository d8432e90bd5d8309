"""The invariant attention kernel against dense attention, forward and backward."""

import pytest
import torch
from torch import Tensor

from openrl.model.attention import (
    KEY_BLOCK,
    PackedAttention,
    _attend_sequence_sdpa,
    _find_siblings,
    blocked_attention,
    group_positions,
    group_rows,
    pad_keys,
    ungroup_rows,
)
from openrl.model.batch import Segment


def dense(q_LNH: Tensor, k_CKH: Tensor, v_CKH: Tensor, first: int, scale: float, window: int | None) -> Tensor:
    """The slow twin: full scores, one softmax."""
    per_group = q_LNH.shape[1] // k_CKH.shape[1]
    k_CNH, v_CNH = (x.repeat_interleave(per_group, 1).double() for x in (k_CKH, v_CKH))
    s_NLC = torch.einsum("lnh,cnh->nlc", q_LNH.double(), k_CNH) * scale
    rows = torch.arange(first, first + q_LNH.shape[0])[:, None]
    keys = torch.arange(k_CKH.shape[0])[None]
    hidden = keys > rows
    if window is not None:
        hidden |= keys <= rows - window
    p = s_NLC.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("nlc,cnh->lnh", p, v_CNH)


def ours(q_LNH: Tensor, k_CKH: Tensor, v_CKH: Tensor, first: int, scale: float, window: int | None) -> Tensor:
    num_kv_heads = k_CKH.shape[1]
    positions = group_positions(first, q_LNH.shape[0], q_LNH.shape[1] // num_kv_heads, q_LNH.device)
    out, _ = blocked_attention(
        group_rows(q_LNH, num_kv_heads),
        pad_keys(k_CKH),
        pad_keys(v_CKH),
        positions.expand(num_kv_heads, -1),
        scale,
        window,
    )
    return ungroup_rows(out, q_LNH.shape[0], q_LNH.shape[1])


@pytest.mark.parametrize("window", [None, 1, 20, 200])
@pytest.mark.parametrize("length", [1, 7, 127, 128, 129, 400])
def test_blocked_attention_equals_dense(length: int, window: int | None):
    torch.manual_seed(length)
    q, k, v = torch.randn(length, 6, 16), torch.randn(length, 2, 16), torch.randn(length, 2, 16)
    expected = dense(q, k, v, 0, 0.3, window)
    assert (ours(q, k, v, 0, 0.3, window) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("window", [None, 60, 300])
def test_a_row_has_the_same_bits_in_any_chunk_of_its_sequence(window: int | None):
    torch.manual_seed(0)
    q, k, v = torch.randn(500, 4, 32), torch.randn(500, 2, 32), torch.randn(500, 2, 32)
    whole = ours(q, k, v, 0, 0.2, window)
    for first, last in ((0, 1), (0, 130), (127, 128), (128, 300), (255, 257), (499, 500), (3, 500)):
        chunk = ours(q[first:last], k[:last], v[:last], first, 0.2, window)
        assert torch.equal(chunk, whole[first:last]), (first, last)


def test_longer_neighbours_in_a_group_batch_change_no_bits():
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 8, 16), torch.randn(2, 4 * KEY_BLOCK, 16), torch.randn(2, 4 * KEY_BLOCK, 16)
    positions = torch.tensor([[5] * 8, [4 * KEY_BLOCK - 1] * 8])
    both, _ = blocked_attention(q, k, v, positions, 0.25, None)
    alone, _ = blocked_attention(q[:1], k[:1, :KEY_BLOCK], v[:1, :KEY_BLOCK], positions[:1], 0.25, None)
    assert torch.equal(both[0], alone[0])


@pytest.mark.parametrize("window", [None, 20])
def test_packed_attention_gradients_equal_dense_autograd(window: int | None):
    torch.manual_seed(2)
    segments = (Segment(0, 5), Segment(5, 150), Segment(155, 33))
    q, k, v = (torch.randn(192, heads, 16, requires_grad=True) for heads in (4, 2, 2))
    weights = torch.randn(192, 4, 16)
    out = PackedAttention(segments).attend(0, q, k, v, 0.25, window)
    assert not out[188:].any()
    (out * weights).sum().backward()
    got = [x.grad.clone() for x in (q, k, v) if x.grad is not None]
    for x in (q, k, v):
        x.grad = None
    for segment in segments:
        rows = slice(segment.start, segment.start + segment.length)
        (dense(q[rows], k[rows], v[rows], 0, 0.25, window) * weights[rows]).sum().backward()
    for mine, leaf in zip(got, (q, k, v), strict=True):
        assert leaf.grad is not None
        assert (mine - leaf.grad).abs().max() < 5e-6


def shared_and_not(prefix: int, lengths: tuple[int, ...]) -> tuple[tuple[Segment, ...], tuple[Segment, ...], Tensor]:
    """Segments of sequences with a common prefix, of the same sequences one by one, and the rows the latter take."""
    shared = [Segment(0, prefix)]
    alone: list[Segment] = []
    rows: list[int] = []
    start = prefix
    for length in lengths:
        shared.append(Segment(start, length, parent=0))
        alone.append(Segment(len(rows), prefix + length))
        rows += [*range(prefix), *range(start, start + length)]
        start += length
    return tuple(shared), tuple(alone), torch.tensor(rows)


@pytest.mark.parametrize("window", [None, 20, 150])
@pytest.mark.parametrize(("prefix", "lengths"), [(90, (15, 9, 1, 22)), (128, (3, 200, 5)), (301, (7, 130, 64, 2))])
def test_a_shared_prefix_gives_the_bits_and_gradients_of_whole_sequences(
    prefix: int, lengths: tuple[int, ...], window: int | None
):
    torch.manual_seed(prefix)
    shared, alone, rows = shared_and_not(prefix, lengths)
    q, k, v = (torch.randn(prefix + sum(lengths), heads, 16, requires_grad=True) for heads in (4, 2, 2))
    weights = torch.randn(len(rows), 4, 16)
    got = PackedAttention(shared).attend(0, q, k, v, 0.25, window)[rows]
    got_gradients = torch.autograd.grad((got * weights).sum(), (q, k, v))
    expected = PackedAttention(alone).attend(0, q[rows], k[rows], v[rows], 0.25, window)
    gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    assert torch.equal(got, expected)
    for mine, other in zip(got_gradients, gradients, strict=True):
        assert (mine - other).abs().max() < 1e-5 * other.abs().max()


def test_siblings_that_would_waste_much_or_hold_many_keys_are_attended_apart():
    uneven, _, _ = shared_and_not(20, (5, 5, 5, 60, 50))
    assert [(each.first, each.stop) for each in _find_siblings(uneven)] == [(0, 1), (1, 4), (4, 6)]
    long, _, _ = shared_and_not(7000, (5,) * 5)
    assert [(each.first, each.stop) for each in _find_siblings(long)] == [(0, 1), (1, 3), (3, 5), (5, 6)]


def test_neighbours_that_share_other_prefixes_change_no_bits():
    torch.manual_seed(3)
    family = (Segment(0, 40), Segment(40, 9, parent=0), Segment(49, 12, parent=0))
    later = tuple(
        Segment(27 + each.start, each.length, parent=each.parent if each.parent < 0 else 3) for each in family
    )
    q, k, v = (torch.randn(96, heads, 16) for heads in (4, 2, 2))
    both = PackedAttention((Segment(0, 20), Segment(20, 3, parent=0), Segment(23, 4, parent=0), *later))
    out = both.attend(0, q, k, v, 0.25, None)
    assert torch.equal(out[27:88], PackedAttention(family).attend(0, q[27:88], k[27:88], v[27:88], 0.25, None))
    assert not out[88:].any()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("length", "num_keys"), [(30, 30), (7, 40), (1, 150)])
def test_fused_attention_of_the_last_rows_equals_the_blocked_one(length: int, num_keys: int, window: int | None):
    torch.manual_seed(length)
    q, k, v = torch.randn(length, 6, 16), torch.randn(num_keys, 2, 16), torch.randn(num_keys, 2, 16)
    got = _attend_sequence_sdpa(q, k, v, 0.25, window)
    assert (got - ours(q, k, v, num_keys - length, 0.25, window)).abs().max() < 2e-6


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_prefix_on_a_gpu_equals_whole_sequences_on_the_cpu(dtype: torch.dtype, window: int | None):
    torch.manual_seed(4)
    shared, alone, rows = shared_and_not(90, (15, 9, 1, 80))
    host = [torch.randn(195, heads, 64).to(dtype).float().requires_grad_() for heads in (4, 2, 2)]
    device = [x.detach().to("cuda", dtype).requires_grad_() for x in host]
    weights = torch.randn(len(rows), 4, 64)
    q, k, v = (x[rows] for x in host)
    expected = PackedAttention(alone).attend(0, q, k, v, 0.125, window)
    q, k, v = device
    got = PackedAttention(shared).attend(0, q, k, v, 0.125, window)[rows.to("cuda")]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert torch.allclose(got.detach().float().cpu(), expected.detach(), atol=tolerance)
    gradients = torch.autograd.grad((expected * weights).sum(), host)
    got_gradients = torch.autograd.grad((got.float() * weights.to("cuda")).sum(), device)
    for mine, other in zip(got_gradients, gradients, strict=True):
        assert (mine.float().cpu() - other).abs().max() < tolerance * other.abs().max()
