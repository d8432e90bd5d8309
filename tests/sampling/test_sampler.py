"""Tokens come from the right distribution, and rows do not feel each other."""

import pytest
import torch
from torch import Tensor

from openrl.sampling.sampler import CHUNK_BYTES, Choices, choose_tokens, likeliest_tokens, row_chunks, tempered_logprobs

VOCAB = 1300


def choices(num_rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> Choices:
    generator = torch.Generator().manual_seed(seed)
    return Choices(
        torch.full((num_rows,), temperature),
        torch.full((num_rows,), top_k),
        torch.full((num_rows,), top_p, dtype=torch.float64),
        torch.rand(num_rows, generator=generator, dtype=torch.float64).clamp_(1e-9),
    )


def random_logits(num_rows: int, vocab: int = VOCAB, scale: float = 3.0) -> Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(11)) * scale


def chosen(logits_MV: Tensor, how: Choices) -> Tensor:
    return choose_tokens(tempered_logprobs(logits_MV, how.temperature), how)


def test_logprobs_are_the_log_softmax_of_the_tempered_logits():
    logits_MV = random_logits(3)
    got = tempered_logprobs(logits_MV, torch.tensor([1.0, 0.5, 2.0]))
    expected = torch.log_softmax(logits_MV / torch.tensor([[1.0], [0.5], [2.0]]), -1)
    assert torch.allclose(got, expected, atol=1e-6)


def test_temperature_zero_reports_logprobs_at_temperature_one():
    logits_MV = random_logits(2)
    got = tempered_logprobs(logits_MV, torch.tensor([0.0, 1.0]))
    assert torch.equal(got, torch.log_softmax(logits_MV, -1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-40])
def test_tiny_temperatures_stay_finite_at_the_likeliest_token(temperature: float):
    logits_MV = random_logits(2) + 1e4
    logprobs_MV = tempered_logprobs(logits_MV, torch.full((2,), temperature))
    assert not logprobs_MV.isnan().any()
    assert torch.equal(logprobs_MV.argmax(-1), logits_MV.argmax(-1))


def test_all_roads_to_greedy_agree_also_on_ties():
    logits_MV = random_logits(64).round()  # many equal maxima
    greedy = chosen(logits_MV, choices(64, temperature=0.0))
    assert torch.equal(greedy, chosen(logits_MV, choices(64, top_k=1)))
    assert torch.equal(greedy, chosen(logits_MV, choices(64, top_p=0.0)))
    assert torch.equal(greedy, chosen(logits_MV, choices(64, top_p=1e-12)))
    distinct_MV = random_logits(64)
    assert torch.equal(
        chosen(distinct_MV, choices(64, temperature=0.0)), chosen(distinct_MV, choices(64, temperature=1e-6))
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.6)]
)
def test_frequencies_follow_the_distribution(temperature: float, top_k: int, top_p: float):
    num_draws = 20000
    logits_V = random_logits(1, vocab=12, scale=1.5)
    tokens = chosen(logits_V.expand(num_draws, -1), choices(num_draws, temperature, top_k, top_p))
    probs = torch.softmax(logits_V[0].double() / temperature, -1)
    order = probs.argsort(descending=True)
    kept = order[:top_k] if top_k else order
    share = probs[kept].cumsum(0) / probs[kept].sum()
    kept = kept[: int((share < top_p).sum()) + 1]
    expected = torch.zeros(12, dtype=torch.float64)
    expected[kept] = probs[kept] / probs[kept].sum()
    seen = torch.bincount(tokens, minlength=12) / num_draws
    assert (seen - expected).abs().max() < 0.012
    assert bool((seen[expected == 0.0] == 0.0).all())


def test_a_rows_token_does_not_depend_on_the_rows_beside_it():
    logits_MV = random_logits(24)
    how = choices(24)
    mixed = Choices(
        torch.tensor([0.0, 1.0, 0.7, 1.5] * 6),
        torch.tensor([0, 0, 7, 0, 1, 0] * 4),
        torch.tensor([1.0, 0.9, 1.0] * 8, dtype=torch.float64),
        how.uniform,
    )
    together_MV = tempered_logprobs(logits_MV, mixed.temperature)
    together = choose_tokens(together_MV, mixed)
    for row in range(24):
        part = slice(row, row + 1)
        one = Choices(mixed.temperature[part], mixed.top_k[part], mixed.top_p[part], mixed.uniform[part])
        alone_1V = tempered_logprobs(logits_MV[part], one.temperature)
        assert torch.equal(alone_1V[0], together_MV[row])
        assert choose_tokens(alone_1V, one)[0] == together[row]


@pytest.mark.parametrize("uniform", [1e-17, 0.5, 1.0 - 2.0**-53])
def test_impossible_tokens_are_never_drawn_not_even_at_the_ends(uniform: float):
    logits_MV = torch.full((1, VOCAB), float("-inf"))
    logits_MV[0, [600, 777]] = 0.0
    how = Choices(
        torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1).double(), torch.tensor([uniform]).double()
    )
    assert int(chosen(logits_MV, how)) in (600, 777)
    cut = Choices(how.temperature, how.top_k, torch.tensor([0.999]).double(), how.uniform)
    assert int(chosen(logits_MV, cut)) in (600, 777)


def test_the_likeliest_tokens_come_likeliest_first_and_at_most_the_vocabulary():
    ids_MK, values_MK = likeliest_tokens(torch.tensor([[-3.0, -1.0, -2.0]]), 5)
    assert ids_MK.tolist() == [[1, 2, 0]]
    assert values_MK.tolist() == [[-1.0, -2.0, -3.0]]


def test_chunks_hold_all_rows_in_order_and_few_bytes():
    logits = [random_logits(7, vocab=2**19), random_logits(3, vocab=2**19)]
    chunks = list(row_chunks(logits))
    assert torch.equal(torch.cat(chunks), torch.cat(logits))
    assert all(chunk.numel() * 4 <= CHUNK_BYTES for chunk in chunks)
    assert [chunk.shape[0] for chunk in row_chunks([random_logits(2, vocab=2**21)])] == [1, 1]


def test_a_draw_finds_the_token_where_the_running_sum_passes_the_uniform_number():
    """Against the slow twin: one running sum over the whole vocabulary, in fp64."""
    logits_MV = random_logits(400)
    how = choices(400)
    weights_MV = tempered_logprobs(logits_MV, how.temperature).double().exp()
    cumulative_MV = weights_MV.cumsum(-1)
    wanted_M1 = how.uniform[:, None] * cumulative_MV[:, -1:]
    expected_M = (cumulative_MV <= wanted_M1).sum(-1)
    is_clear_M = (cumulative_MV - wanted_M1).abs().amin(-1) > 1e-6  # apart from ties of rounding
    assert is_clear_M.sum() > 390
    assert torch.equal(chosen(logits_MV, how)[is_clear_M], expected_M[is_clear_M])
