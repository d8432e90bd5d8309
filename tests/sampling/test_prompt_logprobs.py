"""Prompt scores equal the plain log-softmax, in every layout and whatever the chunks."""

import numpy as np
import pytest
import torch

from openrl.protocol.datum import SparseCsr
from openrl.sampling.prompt_logprobs import PromptScorer, PromptScores, first_scored_position
from tests.sampling.jobs import job

VOCAB, PROMPT = 40, [3, 17, 17, 0, 39, 8, 21]
LOGITS = torch.randn(len(PROMPT), VOCAB, generator=torch.Generator().manual_seed(3)) * 2
LOGPROBS = torch.log_softmax(LOGITS, -1).numpy()


def scores(chunks: tuple[int, ...] = (6,), temperature: float = 1.0, start: int = 0, **extra: object) -> PromptScores:
    scorer = PromptScorer(job("r", PROMPT, extra=extra, temperature=temperature), seed=5)
    for length in chunks:
        scorer.add(start, LOGITS[start : start + length])
        start += length
    assert scorer.is_finite
    return scorer.result()


@pytest.mark.parametrize("chunks", [(6,), (1, 2, 3), (5, 1)])
def test_prompt_logprobs_are_those_of_the_tokens_the_first_absent(chunks: tuple[int, ...]):
    got = scores(chunks, wants_prompt_logprobs=True).logprobs
    assert got is not None
    assert np.isnan(got[0])
    expected = [LOGPROBS[i, token] for i, token in enumerate(PROMPT[1:])]
    assert np.allclose(got[1:], expected, atol=1e-6)


def test_the_last_n_leave_the_others_absent():
    extra = {"wants_prompt_logprobs": True, "topk_prompt_logprobs": 2, "prompt_logprobs_last_n": 2}
    assert first_scored_position(job("r", PROMPT, extra=extra)) == 4
    got = scores((2,), start=4, **extra)
    assert got.logprobs is not None
    assert np.isnan(got.logprobs).tolist() == [True] * 5 + [False] * 2
    assert got.topk is not None
    assert (got.topk.logprobs[:5] == -99999.0).all()
    assert (got.topk.logprobs[5:] > -99999.0).all()


def test_topk_rows_list_the_likeliest_tokens_for_every_prompt_position():
    got = scores((2, 4), topk_prompt_logprobs=3).topk
    assert got is not None
    assert got.token_ids.shape == (7, 3)
    assert got.token_ids[0].tolist() == [0, 0, 0]
    assert got.logprobs[0].tolist() == [-99999.0] * 3
    assert np.array_equal(got.token_ids[1:], np.argsort(-LOGPROBS[:6], axis=1)[:, :3])


def test_dense_targets_keep_their_shape_and_skip_minus_one():
    targets = np.array([[1, -1], [2, 39], [-1, -1], [0, 5], [7, 7], [3, -1]], np.int64)
    got = scores((4, 2), target_prompt_tokens=targets).targets
    assert isinstance(got, np.ndarray)
    expected = np.where(targets == -1, 0.0, np.take_along_axis(LOGPROBS[:6], np.maximum(targets, 0), 1))
    assert np.allclose(got, expected, atol=1e-6)
    assert (got[targets == -1] == 0.0).all()


def test_sparse_targets_keep_their_layout():
    crow, col = np.array([0, 1, 1, 4, 4, 4, 5]), np.array([2, 0, 1, 2, 0])
    values = np.array([9, 1, -1, 2, 30], np.int64)
    asked = SparseCsr(values, crow, col, (6, 3))
    got = scores((1, 1, 4), target_prompt_tokens=asked).targets
    assert isinstance(got, SparseCsr)
    assert got.shape == (6, 3)
    assert np.array_equal(got.crow_indices, crow)
    assert np.array_equal(got.col_indices, col)
    expected = [LOGPROBS[0, 9], LOGPROBS[2, 1], 0.0, LOGPROBS[2, 2], LOGPROBS[5, 30]]
    assert np.allclose(got.values, expected, atol=1e-6)


def test_alternatives_are_reproducible_draws_with_logprobs_at_temperature_one():
    one = scores((6,), prompt_alt_tokens_k=50).alternatives
    other = scores((2, 1, 3), prompt_alt_tokens_k=50).alternatives
    assert one is not None
    assert other is not None
    assert np.array_equal(one.token_ids, other.token_ids)
    assert one.token_ids.shape == (6, 50)
    assert np.allclose(one.logprobs, np.take_along_axis(LOGPROBS[:6], one.token_ids.astype(np.int64), 1), atol=1e-6)
    assert all(len(set(row)) > 3 for row in one.token_ids.tolist())


def test_alternatives_at_temperature_zero_are_the_likeliest_token():
    got = scores((6,), temperature=0.0, prompt_alt_tokens_k=3).alternatives
    assert got is not None
    assert np.array_equal(got.token_ids, np.repeat(LOGPROBS[:6].argmax(1)[:, None], 3, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_noticed(bad: float):
    scorer = PromptScorer(job("r", PROMPT, extra={"wants_prompt_logprobs": True}), seed=5)
    logits_CV = LOGITS[:6].clone()
    logits_CV[2, 30] = bad
    scorer.add(0, logits_CV)
    assert not scorer.is_finite


def test_a_job_without_scores_needs_no_logits_but_the_last():
    assert first_scored_position(job("r", PROMPT)) is None
