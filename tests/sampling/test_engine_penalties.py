"""Penalties and min-p through the engine: tokens of the slow twin, log-probabilities of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from openrl.model.base_model import BaseModel
from openrl.sampling.base import SampleJob, SamplingOptions
from openrl.sampling.batcher import Batcher
from openrl.sampling.sequence import Sequence
from tests.model.tiny_models import load_plain
from tests.sampling.jobs import engine, job, outcomes, sample
from tests.sampling.slow_choice import penalised_logits
from tests.sampling.test_engine import LONG, assert_same

PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.4},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.6},
    "all": {"repetition_penalty": 0.7, "presence_penalty": -1.0, "frequency_penalty": 1.1},
}


def processed_jobs() -> list[SampleJob]:
    """Every option alone and together, greedy and not, some without any."""
    options: list[dict[str, Any]] = [{}, *PENALTIES.values(), {"min_p": 0.2}, {"min_p": 0.1, "top_p": 0.9, "top_k": 30}]
    return [
        job(
            f"r{i}",
            LONG[: 5 + 9 * i],
            num_samples=1 + i % 3,
            adapter=None if i % 2 else "1",
            seed=i,
            max_tokens=40,
            temperature=0.0 if i % 5 == 4 else 0.8,
            **options[i % len(options)],
        )
        for i in range(14)
    ]


@pytest.mark.parametrize("penalties", PENALTIES.values(), ids=PENALTIES.keys())
def test_greedy_tokens_are_those_of_the_slow_twin_and_logprobs_those_of_the_model(
    llama: BaseModel, tiny_dirs: dict[str, Path], penalties: dict[str, Any]
):
    wanted = job("r", LONG[:20], max_tokens=40, temperature=0.0, **penalties)
    got = sample(engine(llama), wanted).sequences[0]
    plain, tokens = load_plain(tiny_dirs["llama"]), list(LONG[:20])
    for token, logprob in zip(got.tokens.tolist(), got.logprobs.tolist(), strict=True):
        with torch.no_grad():
            logits_V = plain(torch.tensor([tokens])).logits[0, -1]
        processed = penalised_logits(logits_V.tolist(), LONG[:20], tokens[20:], wanted.options)
        assert processed[token] >= max(processed) - 1e-4
        assert abs(logprob - float(torch.log_softmax(logits_V, -1)[token])) < 1e-4
        tokens.append(token)
    free = sample(engine(llama), job("r", LONG[:20], max_tokens=40, temperature=0.0)).sequences[0]
    assert got.tokens.tolist() != free.tokens.tolist()


def test_greedy_repetition_is_that_of_generate_in_transformers(llama: BaseModel, tiny_dirs: dict[str, Path]):
    got = sample(engine(llama), job("r", LONG[:20], max_tokens=40, temperature=0.0, repetition_penalty=1.3))
    how = GenerationConfig(
        max_new_tokens=40, min_new_tokens=40, do_sample=False, repetition_penalty=1.3, pad_token_id=0
    )
    prompt = torch.tensor([LONG[:20]])
    expected = load_plain(tiny_dirs["llama"]).generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=how
    )
    assert got.sequences[0].tokens.tolist() == expected[0, 20:].tolist()


@pytest.mark.parametrize("settings", [{"prefill_tokens": 7}, {"num_blocks": 16}])
def test_a_processed_request_gets_the_same_bits_whatever_shares_the_engine(
    llama: BaseModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    preempted: list[Sequence] = []
    preempt = Batcher._preempt

    def recorded(batcher: Batcher, sequence: Sequence) -> None:
        preempted.append(sequence)
        preempt(batcher, sequence)

    monkeypatch.setattr(Batcher, "_preempt", recorded)
    together = outcomes(engine(llama, **settings), processed_jobs())
    assert "num_blocks" not in settings or len(preempted) >= 3
    for each in processed_jobs():
        assert_same(together[each.request_id], sample(engine(llama), each))


def test_requests_without_the_options_keep_their_bits_beside_processed_ones(llama: BaseModel):
    plain = [job(f"p{i}", LONG[i : i + 20], num_samples=2, max_tokens=20, temperature=0.9) for i in range(4)]
    together = outcomes(engine(llama), [*plain, *processed_jobs()])
    for each in plain:
        assert_same(together[each.request_id], sample(engine(llama), each))


def test_neutral_values_are_the_absence_of_the_options(llama: BaseModel):
    neutral: dict[str, Any] = {
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    assert not SamplingOptions(**neutral).has_penalties
    given = job("r", LONG[:20], max_tokens=20, **neutral)
    assert_same(sample(engine(llama), given), sample(engine(llama), job("r", LONG[:20], max_tokens=20)))


def test_the_likeliest_tokens_beside_a_sample_are_the_models(llama: BaseModel):
    wanted = job("r", LONG[:20], max_tokens=1, temperature=0.0, extra={"topk_sample_logprobs": 5}, min_p=0.5)
    penalised = job(
        "r", LONG[:20], max_tokens=1, temperature=0.0, extra={"topk_sample_logprobs": 5}, repetition_penalty=9.0
    )
    one, other = (sample(engine(llama), each).sequences[0].topk_logprobs for each in (wanted, penalised))
    assert one is not None
    assert other is not None
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert one.logprobs.tolist() == other.logprobs.tolist()
