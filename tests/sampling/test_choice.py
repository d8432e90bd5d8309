"""Plain rows are chosen as the sampler chooses them."""

import pytest
import torch
from torch import Tensor

from openrl.sampling.choice import GREEDY, choose_plain, heat_of
from openrl.sampling.sampler import Choices, choose_tokens, tempered_logprobs
from tests.sampling.test_sampler import choices, random_logits


def plain(logits_BV: Tensor, how: Choices) -> tuple[Tensor, Tensor]:
    uniform = how.uniform.masked_fill(how.is_greedy, GREEDY)
    return choose_plain(logits_BV, heat_of(how), uniform)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-3, 0.3, 1.0, 2.5])
def test_tokens_and_logprobs_are_the_samplers(temperature: float):
    logits_BV = random_logits(300)
    how = choices(300, temperature)
    logprobs_BV = tempered_logprobs(logits_BV, how.temperature)
    tokens_B, logprobs_B = plain(logits_BV, how)
    assert (tokens_B == choose_tokens(logprobs_BV, how)).double().mean() > 0.99  # apart from ties of rounding
    assert torch.allclose(logprobs_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_of_equals_the_lowest_id_is_the_likeliest():
    logits_BV = random_logits(64).round()
    how = choices(64, temperature=0.0)
    assert torch.equal(plain(logits_BV, how)[0], choose_tokens(tempered_logprobs(logits_BV, how.temperature), how))


def test_top_k_of_one_is_greedy_at_its_temperature():
    logits_BV = random_logits(5)
    how = choices(5, temperature=0.5, top_k=1)
    tokens_B, logprobs_B = plain(logits_BV, how)
    assert torch.equal(tokens_B, logits_BV.argmax(-1))
    assert torch.allclose(logprobs_B, torch.log_softmax(logits_BV / 0.5, -1).amax(-1), atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_show(value: float):
    logits_BV = random_logits(4)
    logits_BV[1, 700] = value
    for temperature in (0.0, 1.0):
        tokens_B, logprobs_B = plain(logits_BV, choices(4, temperature))
        assert logprobs_B.isfinite().tolist() == [True, False, True, True]
        assert bool(((tokens_B >= 0) & (tokens_B < logits_BV.shape[1])).all())
