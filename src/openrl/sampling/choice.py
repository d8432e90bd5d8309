"""Chooses tokens of plain rows without a look from the host: what a CUDA graph can capture.

Legend: B rows, V vocab.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from openrl.sampling.sampler import Choices

GREEDY = -1.0
"""In place of a uniform number: take the likeliest token."""
LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Below, quotients of different logits are infinite in any case."""

ChoosePlain = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""See `choose_plain`; its fast twin is in choice_kernels."""


def heat_of(choices: Choices) -> Float32[Tensor, " B"]:
    """What logits are divided by: temperature 0 counts as 1."""
    temperature = choices.temperature
    return torch.where(temperature == 0.0, 1.0, temperature).clamp(min=LEAST_TEMPERATURE)


def choose_plain(
    logits_BV: Float32[Tensor, "B V"], temperature_B: Float32[Tensor, " B"], uniform_B: Float64[Tensor, " B"]
) -> tuple[Int64[Tensor, " B"], Float32[Tensor, " B"]]:
    """A token of each row by inverse CDF of its tempered distribution, and the token's log-probability there.

    Where the uniform number is GREEDY: the likeliest token, of equals the one with the lowest id. NaN or +inf in a row
    give it some token and a log-probability that is not finite.
    """
    vocab = logits_BV.shape[1]
    ids_V = torch.arange(vocab, device=logits_BV.device)
    top_B1 = logits_BV.amax(-1, keepdim=True)
    scaled_BV = (logits_BV - top_B1) / temperature_B[:, None]
    weights_BV = scaled_BV.exp().double()
    cumulative_BV = weights_BV.cumsum(-1)
    wanted_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    last_B = torch.where(weights_BV > 0.0, ids_V, 0).amax(-1)
    drawn_B = torch.minimum((cumulative_BV <= wanted_B1).sum(-1), last_B)
    likeliest_B = torch.where(logits_BV == top_B1, ids_V, vocab - 1).amin(-1)
    tokens_B = torch.where(uniform_B < 0.0, likeliest_B, drawn_B)
    chosen_B = scaled_BV.gather(1, tokens_B[:, None])[:, 0]
    return tokens_B, chosen_B - weights_BV.sum(-1).float().log()
