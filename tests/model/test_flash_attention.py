"""One call for all sequences equals dense attention: rows, prefixes, windows, padding, gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from openrl.model.batch import Segment
from openrl.model.flash_attention import FlashAttention, takes_flash
from tests.model import flash_twin
from tests.model.test_attention import dense

FAMILY = (Segment(0, 40), Segment(40, 9, parent=0), Segment(49, 12, parent=0), Segment(61, 1, parent=0))
BATCHES: dict[str, tuple[Segment, ...]] = {
    "sequences": (Segment(0, 5), Segment(5, 70), Segment(75, 1)),
    "one row each": (Segment(0, 1), Segment(1, 1)),
    "a family": FAMILY,
    "families among others": (
        Segment(0, 7),
        Segment(7, 30),
        Segment(37, 3, parent=1),
        Segment(40, 20, parent=1),
        Segment(60, 17),
        Segment(77, 18),
        Segment(95, 1, parent=5),
        Segment(96, 33, parent=5),
        Segment(129, 2),
    ),
}


@pytest.fixture
def operators() -> Iterator[None]:
    """The operators, where there is no GPU."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_twin.forward, "CPU")
    library.impl("_flash_attention_backward", flash_twin.backward, "CPU")
    yield
    library._destroy()


def expected_rows(segments: tuple[Segment, ...], q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Every sequence by itself, its prefix copied before it."""
    outs: list[Tensor] = []
    for segment in segments:
        own = list(range(segment.start, segment.start + segment.length))
        before: list[int] = []
        if segment.parent >= 0:
            parent = segments[segment.parent]
            before = list(range(parent.start, parent.start + parent.length))
        outs.append(dense(q[own], k[before + own], v[before + own], len(before), 0.25, window))
    return torch.cat(outs)


@pytest.mark.parametrize("window", [None, 1, 20, 45])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("segments", BATCHES.values(), ids=BATCHES.keys())
def test_rows_and_gradients_are_those_of_dense_attention(
    operators: None, segments: tuple[Segment, ...], padding: int, window: int | None
):
    torch.manual_seed(0)
    used = sum(segment.length for segment in segments)
    leaves = [torch.randn(used + padding, n, 16, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    q, k, v = leaves
    weights = torch.randn(used + padding, 4, 16, dtype=torch.float64)
    out = FlashAttention(segments, used + padding, q.device).attend(q, k, v, 0.25, window)
    assert not out[used:].any()
    expected = expected_rows(segments, q, k, v, window)
    assert (out[:used] - expected).abs().max() < 1e-12
    got_gradients = torch.autograd.grad((out * weights).sum(), leaves)
    gradients = torch.autograd.grad((expected * weights[:used]).sum(), leaves)
    for mine, other in zip(got_gradients, gradients, strict=True):
        assert (mine - other).abs().max() < 1e-11
        assert not mine[used:].any()


def test_layers_share_what_is_made_for_the_batch(operators: None):
    attention = FlashAttention(FAMILY, 62, torch.device("cpu"))
    q, k, v = (torch.randn(62, heads, 16, dtype=torch.float64) for heads in (4, 2, 2))
    first = attention.attend(q, k, v, 0.25, 20)
    made = attention._windowed_parts(20)
    assert torch.equal(attention.attend(q, k, v, 0.25, 20), first)
    assert attention._windowed_parts(20) is made


def test_a_deterministic_backward_pass_leaves_the_switch_as_it_was():
    seen: list[bool] = []
    library = torch.library.Library("aten", "IMPL")

    def spy(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return flash_twin.backward(*args, **options)

    library.impl("_flash_attention_backward", spy, "CPU")
    library.impl("_flash_attention_forward", flash_twin.forward, "CPU")
    q, k, v = (torch.randn(62, heads, 16, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    for deterministic in (True, False):
        attention = FlashAttention(FAMILY, 62, torch.device("cpu"), deterministic)
        attention.attend(q, k, v, 0.25, None).sum().backward()
    library._destroy()
    assert seen == [True, True, False, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_kernels_are_for_half_precision_on_a_gpu():
    assert not takes_flash(torch.zeros(8, 4, 64))
    assert not takes_flash(torch.zeros(8, 4, 64, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 20, 45])
@pytest.mark.parametrize("segments", BATCHES.values(), ids=BATCHES.keys())
def test_the_kernels_of_a_gpu_stay_within_the_noise_of_bf16(
    segments: tuple[Segment, ...], window: int | None, head_dim: int, heads: tuple[int, int]
):
    torch.manual_seed(1)
    used, (num_heads, num_kv_heads) = sum(segment.length for segment in segments), heads
    host = [
        torch.randn(used + 5, n, head_dim).bfloat16().float().requires_grad_()
        for n in (num_heads, num_kv_heads, num_kv_heads)
    ]
    device = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in host]
    weights = torch.randn(used + 5, num_heads, head_dim)
    attention = FlashAttention(segments, used + 5, device[0].device, deterministic=True)
    q, k, v = device
    out = attention.attend(q, k, v, 0.25, window)
    expected = expected_rows(segments, host[0], host[1], host[2], window)
    assert not out[used:].any()
    assert (out[:used].float().cpu() - expected).abs().max() < 5e-2 * expected.abs().max()
    got_gradients = torch.autograd.grad((out.float() * weights.cuda()).sum(), device)
    gradients = torch.autograd.grad((expected * weights[:used]).sum(), host)
    for mine, other in zip(got_gradients, gradients, strict=True):
        # With a window of 1 the gradients of queries and keys are zero but for rounding.
        assert (mine.float().cpu() - other).abs().max() < 5e-2 * other.abs().max() + 1e-3
        assert not mine[used:].any()
    again = torch.autograd.grad((attention.attend(q, k, v, 0.25, window).float() * weights.cuda()).sum(), device)
    assert all(torch.equal(one, other) for one, other in zip(got_gradients, again, strict=True))
