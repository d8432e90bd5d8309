"""Penalties and min-p against their slow twin, and against those of transformers."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from openrl.sampling.base import SamplingOptions
from openrl.sampling.logits_processing import Processing, penalised, process, processing_of, without_unlikely
from openrl.sampling.sampler import Choices, choose_tokens, tempered_logprobs
from openrl.sampling.token_history import PromptTokens, TokenHistory
from tests.sampling.slow_choice import distribution, penalised_logits

VOCAB = 11
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
PENALTIES = {
    "repetition_penalty": st.floats(0.1, 10) | st.just(1.0),
    "presence_penalty": st.floats(-2, 2) | st.just(0.0),
    "frequency_penalty": st.floats(-2, 2) | st.just(0.0),
}
CUTS: dict[str, Any] = {
    "temperature": st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    "min_p": st.floats(0, 1) | st.just(0.0),
    "top_k": st.integers(1, VOCAB) | st.just(-1),
    "top_p": st.floats(0, 1) | st.just(1.0),
}
NUM_DRAWS = 997


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], list[int], list[int], SamplingOptions]:
    """Logits, prompt, output, options."""
    logits = draw(st.lists(st.floats(-8, 8, width=32), min_size=VOCAB, max_size=VOCAB))
    options: dict[str, Any] = {name: draw(values) for name, values in (PENALTIES | CUTS).items()}
    return logits, draw(TOKENS.filter(bool)), draw(TOKENS), SamplingOptions(**options)


def history(prompt: list[int], output: list[int]) -> TokenHistory:
    """Taken in one token after the other, as generation does."""
    made = TokenHistory(PromptTokens(prompt), len(prompt))
    for end in range(len(output) + 1):
        made.follow(prompt + output[:end])
    return made


def one_row(prompt: list[int], output: list[int], options: SamplingOptions) -> Processing:
    return processing_of([0], [options], [history(prompt, output)])


@given(st.lists(rows(), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_penalised_logits_are_those_of_the_slow_twin(batch: list[tuple[Any, ...]]):
    options = [row[3] for row in batch]
    processing = processing_of(range(len(batch)), options, [history(row[1], row[2]) for row in batch])
    got = penalised(torch.tensor([row[0] for row in batch]), processing)
    expected = torch.tensor([penalised_logits(*row) for row in batch])
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-6)


@given(rows())
@settings(max_examples=80, deadline=None)
def test_tokens_are_chosen_as_often_as_by_the_slow_twin(row: tuple[Any, ...]):
    logits, prompt, output, options = row
    expected = distribution(*row)
    # Where rounding decides whether a token is in, both answers are right.
    assume(all(b - a > 1e-4 or a == b for a, b in pairwise(sorted(penalised_logits(*row)))))
    for nearby in (-1e-4, 1e-4):
        shaken = replace(options, min_p=within(options.min_p + nearby), top_p=within(options.top_p + nearby))
        assume(largest_difference(distribution(logits, prompt, output, shaken), expected) < 1e-3)
    chosen = draws(torch.tensor([logits]), one_row(prompt, output, options), options)
    seen = torch.bincount(chosen, minlength=VOCAB) / NUM_DRAWS
    assert (seen - torch.tensor(expected)).abs().max() < 2 / NUM_DRAWS + 1e-4


def within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def draws(logits_1V: Tensor, processing: Processing, options: SamplingOptions) -> Tensor:
    """The row's choices for evenly spread uniform numbers."""
    temperature = torch.full((NUM_DRAWS,), options.temperature)
    logprobs_1V = tempered_logprobs(logits_1V, temperature[:1])
    chosen_by_1V = process(logits_1V, logprobs_1V, temperature[:1], processing)
    choices = Choices(
        temperature,
        torch.full((NUM_DRAWS,), max(options.top_k, 0)),
        torch.full((NUM_DRAWS,), options.top_p, dtype=torch.float64),
        (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS,
    )
    return choose_tokens(chosen_by_1V.expand(NUM_DRAWS, -1), choices)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float):
    logits_MV = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    prompt, output = [1, 4, 4], [9, 1, 0]
    options = SamplingOptions(repetition_penalty=penalty)
    processing = processing_of(range(4), [options] * 4, [history(prompt, output)] * 4)
    theirs: Any = RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.tensor([prompt + output] * 4), logits_MV.clone())
    assert torch.allclose(penalised(logits_MV.clone(), processing), expected, rtol=1e-6)


@pytest.mark.parametrize("min_p", [1e-6, 0.05, 0.5, 1.0])
def test_min_p_is_that_of_transformers(min_p: float):
    logits_MV = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    logprobs_MV = torch.log_softmax(logits_MV, -1)
    got = without_unlikely(logprobs_MV, torch.full((4,), min_p))
    theirs: Any = MinPLogitsWarper(min_p)
    assert torch.equal(got.isfinite(), theirs(torch.tensor([[0]]), logits_MV).isfinite())
    assert torch.equal(got[got.isfinite()], logprobs_MV[got.isfinite()])


def test_min_p_one_leaves_the_likeliest_and_its_equals():
    logprobs_1V = torch.log_softmax(torch.tensor([[2.0, 1.0, 2.0]]), -1)
    assert without_unlikely(logprobs_1V, torch.ones(1)).isfinite().tolist() == [[True, False, True]]


def test_rows_that_ask_for_nothing_keep_their_bits_and_the_inputs_stay():
    logits_MV = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(4))
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.0, 2.0])
    logprobs_MV = tempered_logprobs(logits_MV, temperature)
    before = logits_MV.clone(), logprobs_MV.clone()
    options = [SamplingOptions(presence_penalty=1.0, temperature=0.7), SamplingOptions(min_p=0.9)]
    got = process(logits_MV, logprobs_MV, temperature, processing_of([1, 3], options, [history([1], [2, 2, 1]), None]))
    assert torch.equal(logits_MV, before[0])
    assert torch.equal(logprobs_MV, before[1])
    assert torch.equal(got[[0, 2, 4]], logprobs_MV[[0, 2, 4]])
    assert not torch.equal(got[1], logprobs_MV[1])
    assert not torch.equal(got[3], logprobs_MV[3])


def test_a_processed_rows_bits_do_not_depend_on_the_rows_beside_it():
    num_rows = 8
    logits_MV = torch.randn(num_rows, 1300, generator=torch.Generator().manual_seed(5)) * 3
    temperature = torch.tensor([1.0, 0.6] * 4)
    options = [SamplingOptions(repetition_penalty=1 + i / 8, frequency_penalty=0.5, min_p=i / 80) for i in range(8)]
    histories = [history([i, 2 * i], [3 * i, i, 700]) for i in range(num_rows)]
    together = process(
        logits_MV,
        tempered_logprobs(logits_MV, temperature),
        temperature,
        processing_of(range(num_rows), options, histories),
    )
    for row in range(num_rows):
        part = slice(row, row + 1)
        alone_1V = tempered_logprobs(logits_MV[part], temperature[part])
        one = processing_of([0], [options[row]], [histories[row]])
        assert torch.equal(process(logits_MV[part], alone_1V, temperature[part], one)[0], together[row])
