"""What a sample tells of its prompt and of other tokens, asked by the SDK, against plain transformers."""

from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from torch import Tensor

from openrl.sampling.randomness import PROMPT_ALTERNATIVES, uniforms
from tests.contracts.loops import TEXT, prompt_of
from tests.sampling.slow_choice import choose
from tests.sdk.conftest import Trained

SEED = 2**63 + 5
TOLERANCE = 1e-4
ONE = types.SamplingParams(max_tokens=1, seed=SEED)


def expected_logprobs(trained: Trained, tokens: list[int], temperature: float = 1.0) -> Tensor:
    """[N - 1, V]: row i is of position i + 1."""
    return trained.twin.logprobs(tokens, temperature).detach()[:-1].float()


def ask(trained: Trained, params: types.SamplingParams = ONE, num_samples: int = 1, **options: Any):
    return trained.sampler.sample(prompt_of(TEXT), num_samples, params, **options).result()


@pytest.mark.sdk("SamplingClient.sample", "SamplingClient.compute_logprobs")
@pytest.mark.parametrize("last_n", [None, 1, 4, len(TEXT) - 1])
def test_prompt_logprobs_and_the_likeliest_are_the_twins_for_the_last_n(trained: Trained, last_n: int | None):
    num_scored = last_n or len(TEXT) - 1
    num_absent = len(TEXT) - num_scored
    options: dict[str, Any] = {
        "include_prompt_logprobs": True,
        "topk_prompt_logprobs": 5,
        "prompt_logprobs_last_n": last_n,
    }
    response = ask(trained, **options)
    expected_NV = expected_logprobs(trained, TEXT)[-num_scored:]
    of_prompt = expected_NV.gather(1, torch.tensor(TEXT[-num_scored:])[:, None])[:, 0].tolist()
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[:num_absent] == [None] * num_absent
    assert response.prompt_logprobs[num_absent:] == pytest.approx(of_prompt, abs=TOLERANCE)
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[:num_absent] == [None] * num_absent
    check_likeliest(response.topk_prompt_logprobs[num_absent:], expected_NV, 5)
    alone = trained.sampler.compute_logprobs(prompt_of(TEXT), prompt_logprobs_last_n=last_n).result()
    assert alone == response.prompt_logprobs


def check_likeliest(rows: Any, expected_NV: Tensor, k: int) -> None:
    values_NK, ids_NK = expected_NV.topk(k)
    assert [[token for token, _ in row] for row in rows] == ids_NK.tolist()
    for row, values in zip(rows, values_NK.tolist(), strict=True):
        assert [logprob for _, logprob in row] == pytest.approx(values, abs=TOLERANCE)


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.6}, {"temperature": 1.6, "top_k": 2}, {"temperature": 0.0}], ids=str
)
@pytest.mark.parametrize("k", [1, 6, 512])
def test_the_likeliest_beside_each_sampled_token_are_the_twins_before_any_cut(
    trained: Trained, params: dict[str, Any], k: int
):
    settings = types.SamplingParams(max_tokens=6, seed=SEED, stop=[], **params)
    response = ask(trained, settings, num_samples=2, topk_sample_logprobs=k)
    for sequence in response.sequences:
        tokens = TEXT + list(sequence.tokens)
        expected_NV = expected_logprobs(trained, tokens, params.get("temperature", 1.0) or 1.0)[len(TEXT) - 1 :]
        rows: Any = sequence.topk_logprobs
        if k < 512:
            check_likeliest(rows, expected_NV, k)
        else:  # neighbours of nearly equal probability may change places
            assert [dict(row).keys() for row in rows] == [set(range(512))] * 6
        for row, token, logprob in zip(rows, sequence.tokens, sequence.logprobs or (), strict=True):
            assert dict(row).get(token, logprob) == logprob


def targets(density: float) -> Tensor:
    """[P - 1, 7] of ids and -1, empty and full rows among them."""
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(0, 512, (len(TEXT) - 1, 7), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) > density] = -1
    ids[3], ids[5] = -1, torch.arange(7)
    return ids


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize("is_sparse", [False, True])
def test_target_logprobs_are_the_twins_in_the_layout_they_were_asked_in(trained: Trained, is_sparse: bool):
    ids = targets(0.15)
    data = types.TensorData.from_torch_sparse(ids, pad_value=-1) if is_sparse else types.TensorData.from_torch(ids)
    assert (data.sparse_crow_indices is not None) == is_sparse
    hot = types.SamplingParams(max_tokens=1, temperature=1.9)  # scores are at temperature 1 all the same
    got = ask(trained, hot, target_prompt_logprobs=data).target_prompt_logprobs
    assert got is not None
    assert (got.dtype, got.shape) == ("float32", list(ids.shape))
    assert (got.sparse_crow_indices, got.sparse_col_indices) == (data.sparse_crow_indices, data.sparse_col_indices)
    expected = expected_logprobs(trained, TEXT).gather(1, ids.clamp(min=0)).masked_fill(ids == -1, 0.0)
    assert torch.allclose(got.to_torch(), expected, atol=TOLERANCE)
    assert (got.to_torch()[ids == -1] == 0.0).all()


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_alternatives_are_the_twins_draws_with_logprobs_at_temperature_one(trained: Trained, temperature: float):
    num_draws = 40
    params = types.SamplingParams(max_tokens=1, seed=SEED, temperature=temperature, top_k=1)  # a cut of samples alone
    got = ask(trained, params, prompt_alt_tokens_k=num_draws).prompt_alt_tokens
    assert got is not None
    tokens_NK, logprobs_NK = got.tokens.to_torch(), got.logprobs.to_torch()
    expected_NV = expected_logprobs(trained, TEXT)
    assert tokens_NK.shape == (len(TEXT) - 1, num_draws)
    assert torch.allclose(logprobs_NK, expected_NV.gather(1, tokens_NK), atol=TOLERANCE)
    if temperature == 0.0:
        assert (tokens_NK == expected_NV.argmax(-1, keepdim=True)).all()
        return
    chances_NV = expected_logprobs(trained, TEXT, temperature).double().exp().tolist()
    for row, chances in enumerate(chances_NV):
        positions = np.full(num_draws, row + 1, np.uint64)
        seeds = np.full(1, SEED, np.uint64)
        drawn = uniforms(seeds, PROMPT_ALTERNATIVES, np.arange(num_draws, dtype=np.uint64), positions).tolist()
        for token, uniform in zip(tokens_NK[row].tolist(), drawn, strict=True):
            # The model's own rounding moves the borders between tokens by less than this.
            nearby = (max(uniform - TOLERANCE, 0.0), uniform, min(uniform + TOLERANCE, 1 - 1e-9))
            assert token in [choose(chances, each, is_ranked=False) for each in nearby]


@pytest.mark.sdk("SamplingClient.sample")
def test_everything_at_once_gives_what_each_option_gives_alone(trained: Trained):
    data = types.TensorData.from_torch(targets(0.5))
    options: dict[str, Any] = {
        "topk_prompt_logprobs": 3,
        "topk_sample_logprobs": 2,
        "target_prompt_logprobs": data,
        "prompt_alt_tokens_k": 2,
    }
    scored: dict[str, Any] = {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 5}
    params = types.SamplingParams(max_tokens=5, seed=SEED, stop=[])
    together = ask(trained, params, 2, **options, **scored)
    assert together.prompt_logprobs == ask(trained, params, 2, **scored).prompt_logprobs
    alone = {name: ask(trained, params, 2, **{name: value}) for name, value in options.items()}
    assert together.topk_prompt_logprobs is not None
    assert alone["topk_prompt_logprobs"].topk_prompt_logprobs is not None
    assert together.topk_prompt_logprobs[-5:] == alone["topk_prompt_logprobs"].topk_prompt_logprobs[-5:]
    assert together.target_prompt_logprobs is not None
    assert alone["target_prompt_logprobs"].target_prompt_logprobs is not None
    of_targets = alone["target_prompt_logprobs"].target_prompt_logprobs.to_torch()
    assert torch.equal(together.target_prompt_logprobs.to_torch(), of_targets)
    assert together.prompt_alt_tokens is not None
    assert alone["prompt_alt_tokens_k"].prompt_alt_tokens is not None
    drawn = alone["prompt_alt_tokens_k"].prompt_alt_tokens.tokens.to_torch()
    assert torch.equal(together.prompt_alt_tokens.tokens.to_torch(), drawn)
    plain = ask(trained, params, 2)
    for i, sequence in enumerate(together.sequences):
        assert list(sequence.tokens) == list(plain.sequences[i].tokens)
        assert list(sequence.logprobs or ()) == list(plain.sequences[i].logprobs or ())
        assert sequence.topk_logprobs == alone["topk_sample_logprobs"].sequences[i].topk_logprobs


@pytest.mark.sdk("SamplingClient.sample")
def test_a_prompt_of_one_token_has_nothing_to_score(trained: Trained):
    response = trained.sampler.sample(prompt_of([7]), 1, ONE, include_prompt_logprobs=True).result()
    assert response.prompt_logprobs == [None]
    assert trained.sampler.compute_logprobs(prompt_of([7])).result() == [None]
    with pytest.raises(tinker.BadRequestError, match="prompt tokens is 1; it must be at least 2"):
        trained.sampler.sample(prompt_of([7]), 1, ONE, prompt_alt_tokens_k=1).result()


@pytest.mark.sdk("SamplingClient.sample")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk_sample_logprobs": 513}, "topk_sample_logprobs is 513; it must be between 0 and 512"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"prompt_alt_tokens_k": 513}, "prompt_alt_tokens_k is 513"),
        (
            {"include_prompt_logprobs": True, "prompt_logprobs_last_n": len(TEXT)},
            "prompt_logprobs_last_n is 16; it must be between 1 and 15",
        ),
        ({"target_prompt_logprobs": types.TensorData.from_torch(targets(1.0)[1:])}, r"it must be \[15, K\]"),
        ({"target_prompt_logprobs": types.TensorData.from_torch(targets(1.0) + 512)}, "it must be -1 to 511"),
    ],
)
def test_what_is_out_of_bounds_is_refused(trained: Trained, options: dict[str, Any], message: str):
    with pytest.raises(tinker.BadRequestError, match=message):
        ask(trained, **options)
