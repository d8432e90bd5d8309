"""Checks of the kernels that choose tokens; test_choice_kernels runs them, where triton must be told to interpret
before anything imports it."""

import pytest
import torch
from torch import Tensor

from openrl.sampling import choice_kernels
from openrl.sampling.choice import GREEDY, LEAST_TEMPERATURE, choose_plain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy


def random_rows(num_rows: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    logits_BV = torch.randn(num_rows, vocab, generator=generator) * 3
    temperature_B = torch.rand(num_rows, generator=generator) * 2 + 0.1
    uniform_B = torch.rand(num_rows, generator=generator, dtype=torch.float64).clamp(1e-9)
    uniform_B[::4] = GREEDY
    return logits_BV.to(DEVICE), temperature_B.to(DEVICE), uniform_B.to(DEVICE)


def assert_agree(logits_BV: Tensor, temperature_B: Tensor, uniform_B: Tensor, least: float = 1.0) -> None:
    expected, expected_logprobs = choose_plain(logits_BV, temperature_B, uniform_B)
    tokens, logprobs = choice_kernels.choose_plain(logits_BV, temperature_B, uniform_B)
    is_finite = expected_logprobs.isfinite()
    assert torch.equal(logprobs.isfinite(), is_finite)
    assert bool(((tokens >= 0) & (tokens < logits_BV.shape[1])).all())
    is_same = (tokens == expected)[is_finite]
    assert is_same.double().mean() >= least
    assert torch.allclose(logprobs[is_finite][is_same], expected_logprobs[is_finite][is_same], atol=1e-5)


@pytest.mark.parametrize(("num_rows", "vocab"), [(40, 300), (12, 4096), (12, 9001), (1, 151_936), (1, 262_144)])
def test_random_rows(num_rows: int, vocab: int):
    assert_agree(*random_rows(num_rows, vocab), least=0.9)  # apart from ties of rounding


def test_rows_in_a_larger_matrix_and_tokens_that_tie():
    logits_BV, temperature_B, uniform_B = random_rows(24, 5000)
    assert_agree(logits_BV[:, :4999].round(), temperature_B, torch.full_like(uniform_B, GREEDY))


def test_tiny_temperatures_take_the_likeliest():
    logits_BV, temperature_B, uniform_B = random_rows(24, 5000)
    assert_agree(logits_BV + 1e4, torch.full_like(temperature_B, LEAST_TEMPERATURE), uniform_B)


def test_impossible_tokens_are_never_drawn_not_even_at_the_ends():
    uniform_B = torch.tensor([1e-17, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64, device=DEVICE)
    logits_BV = torch.full((5, 9001), float("-inf"), device=DEVICE)
    logits_BV[:, [600, 8777]] = 0.0
    tokens, _ = choice_kernels.choose_plain(logits_BV, torch.ones(5, device=DEVICE), uniform_B)
    assert tokens.tolist() == [600, 600, 8777, 8777, 8777]


def test_logits_that_are_not_finite_show():
    logits_BV, temperature_B, uniform_B = random_rows(9, 9001)
    logits_BV[0, 5] = float("nan")
    logits_BV[1, 8999] = float("inf")
    logits_BV[2] = float("-inf")
    logits_BV[3] = float("nan")
    logits_BV[4, :4096] = float("-inf")
    logits_BV[5] = float("-inf")
    logits_BV[5, 77] = float("nan")
    logits_BV[6, 1:] = float("-inf")
    assert_agree(logits_BV, temperature_B, uniform_B)
    assert_agree(logits_BV, temperature_B, torch.full_like(uniform_B, GREEDY))


def test_frequencies_follow_the_distribution():
    logits_1V = torch.linspace(-2.0, 2.0, 12, device=DEVICE)[None]
    generator = torch.Generator().manual_seed(5)
    num_draws = 400
    uniform_B = torch.rand(num_draws, generator=generator, dtype=torch.float64).to(DEVICE)
    temperature_B = torch.full((num_draws,), 0.7, device=DEVICE)
    tokens, _ = choice_kernels.choose_plain(logits_1V.expand(num_draws, -1).contiguous(), temperature_B, uniform_B)
    seen = torch.bincount(tokens, minlength=12) / num_draws
    assert (seen - torch.softmax(logits_1V[0] / 0.7, -1)).abs().max() < 0.09
