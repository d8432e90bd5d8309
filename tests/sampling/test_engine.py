"""The engine against plain transformers, and what a request may see of the others: nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.model.lora import AdapterBank
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.batcher import Batcher
from openrl.sampling.sequence import Sequence
from tests.model.tiny_models import FAMILIES, load_plain, packed
from tests.sampling.jobs import adapter_weights, drain, engine, job, outcomes, sample

LONG = list(range(20, 170))


def assert_same(got: SampleResult | RequestFailed, expected: SampleResult) -> None:
    """Equal bit by bit."""
    assert isinstance(got, SampleResult), got
    assert len(got.sequences) == len(expected.sequences)
    for one, other in zip(got.sequences, expected.sequences, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.logprobs.tolist() == other.logprobs.tolist()
        assert one.stop_reason == other.stop_reason
    if expected.prompt_logprobs is not None:
        assert got.prompt_logprobs is not None
        assert np.array_equal(got.prompt_logprobs, expected.prompt_logprobs, equal_nan=True)


def mixed_jobs() -> list[SampleJob]:
    """Prompts of many lengths, with and without adapters, some alike."""
    scored = {"wants_prompt_logprobs": True}
    return [
        job(
            f"r{i}",
            LONG[i : i + 3 + 31 * (i % 5)] if i % 4 else LONG[: 8 * i + 1],
            num_samples=1 + i % 3,
            adapter=None if i % 3 == 0 else str(i % 4),
            seed=2**64 - 1 - i,
            max_tokens=24,
            temperature=0.0 if i == 5 else 0.9,
            top_p=0.9 if i % 2 else 1.0,
            extra=scored if i % 4 == 1 else None,
        )
        for i in range(12)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_prefill_and_decode_equal_plain_transformers(
    tiny_model: Callable[[str], BaseModel], tiny_dirs: dict[str, Path], family: str
):
    model, plain = tiny_model(family), load_plain(tiny_dirs[family])
    wanted = job("r", LONG[:70], max_tokens=70, temperature=0.8, extra={"wants_prompt_logprobs": True})
    result = sample(engine(model, prefill_tokens=32), wanted)
    tokens = LONG[:70] + result.sequences[0].tokens.tolist()
    with torch.no_grad():
        logits = plain(torch.tensor([tokens])).logits[0]
    following = torch.tensor(tokens[1:])[:, None]
    tempered = torch.log_softmax(logits[:-1] / 0.8, -1).gather(1, following)[69:, 0].numpy()
    untempered = torch.log_softmax(logits[:-1], -1).gather(1, following)[:69, 0].numpy()
    assert np.abs(result.sequences[0].logprobs - tempered).max() < 1e-4
    assert result.prompt_logprobs is not None
    assert np.isnan(result.prompt_logprobs[0])
    assert np.abs(result.prompt_logprobs[1:] - untempered).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_plain_transformers(
    tiny_model: Callable[[str], BaseModel], tiny_dirs: dict[str, Path], family: str
):
    result = sample(engine(tiny_model(family)), job("r", LONG[:40], max_tokens=30, temperature=0.0))
    tokens = list(LONG[:40])
    plain = load_plain(tiny_dirs[family])
    with torch.no_grad():
        for _ in range(30):
            tokens.append(int(plain(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert result.sequences[0].tokens.tolist() == tokens[40:]


def test_adapters_give_the_logprobs_of_the_dense_packed_model(llama: BaseModel):
    bank = AdapterBank(llama.linear_shapes, 1, llama.dtype, llama.device)
    bank.write(0, adapter_weights(llama, 1, rank=5))
    wanted = job("r", LONG[:30], adapter="1", max_tokens=20)
    beside = job("b", LONG[:30], max_tokens=20)
    results = outcomes(engine(llama), [beside, wanted, job("c", LONG[:9], adapter="2")])
    result, base = results["r"], results["b"]
    assert isinstance(result, SampleResult)
    assert isinstance(base, SampleResult)
    tokens = LONG[:30] + result.sequences[0].tokens.tolist()
    with torch.no_grad():
        batch = packed(llama, [tokens], bank, [0])
        logits = llama.logits(llama.hidden(batch), bank, batch.segments)[: len(tokens) - 1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[29:, 0]
    assert torch.equal(torch.from_numpy(result.sequences[0].logprobs), expected)
    assert base.sequences[0].logprobs.tolist() != result.sequences[0].logprobs.tolist()


SETTINGS: dict[str, dict[str, Any]] = {
    "all together": {},
    "small prefill chunks": {"prefill_tokens": 7},
    "few at a time": {"max_sequences": 3},
    "short of blocks": {"num_blocks": 16},
    "adapters evicted and loaded again": {"resident_adapters": 1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_request_gets_the_same_bits_whatever_shares_the_engine(
    tiny_model: Callable[[str], BaseModel], family: str, settings: Mapping[str, Any]
):
    model = tiny_model(family)
    shared = engine(model, **settings)
    together = outcomes(shared, mixed_jobs())
    assert shared.stats().kv_blocks_used == 0
    for each in mixed_jobs()[:8]:
        assert_same(together[each.request_id], sample(engine(model), each))


def test_sequences_that_gave_way_and_were_recomputed_have_the_same_bits(
    llama: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    preempted: list[tuple[int, int]] = []
    preempt = Batcher._preempt

    def recorded(batcher: Batcher, sequence: Sequence) -> None:
        preempted.append(sequence.order)
        preempt(batcher, sequence)

    monkeypatch.setattr(Batcher, "_preempt", recorded)
    jobs = [job(f"r{i}", LONG[i : i + 5 + i], num_samples=2, max_tokens=60, seed=i) for i in range(5)]
    together = outcomes(engine(llama, num_blocks=14), jobs)
    assert len(preempted) >= 3
    for each in jobs:
        assert_same(together[each.request_id], sample(engine(llama), each))


def test_a_prefix_found_in_the_cache_changes_no_bit(llama: BaseModel):
    sampling = engine(llama)
    wanted = job("r", LONG[:100], max_tokens=20, adapter="1")
    cold = sample(sampling, wanted)
    warm = sample(sampling, wanted)
    assert cold.prompt_cache_hit_tokens == 0
    assert warm.prompt_cache_hit_tokens == 96
    assert_same(warm, cold)


def test_prefixes_are_shared_within_one_sampler_only(llama: BaseModel):
    sampling = engine(llama)
    sample(sampling, job("a", LONG[:100]))
    assert sample(sampling, job("b", LONG[:100], sampler_id="other tenant")).prompt_cache_hit_tokens == 0
    assert sample(sampling, job("c", LONG[:100], adapter="1")).prompt_cache_hit_tokens == 0
    assert sample(sampling, job("d", LONG[:100])).prompt_cache_hit_tokens == 96


def test_prompt_logprobs_are_complete_although_the_prefix_is_cached(llama: BaseModel):
    sampling = engine(llama)
    sample(sampling, job("warm", LONG[:100]))
    full = sample(sampling, job("full", LONG[:100], extra={"wants_prompt_logprobs": True}))
    last = sample(
        sampling, job("last", LONG[:100], extra={"wants_prompt_logprobs": True, "prompt_logprobs_last_n": 10})
    )
    assert full.prompt_logprobs is not None
    assert last.prompt_logprobs is not None
    assert full.prompt_cache_hit_tokens == 0
    assert last.prompt_cache_hit_tokens == 80
    assert np.isnan(full.prompt_logprobs).sum() == 1
    assert np.isnan(last.prompt_logprobs).sum() == 90
    assert full.prompt_logprobs[90:].tolist() == last.prompt_logprobs[90:].tolist()


def test_sampled_logprobs_at_temperature_one_are_the_prompt_logprobs_of_the_same_tokens(llama: BaseModel):
    sampled = sample(engine(llama), job("a", LONG[:33], max_tokens=40)).sequences[0]
    again = job("b", [*LONG[:33], *sampled.tokens.tolist()], max_tokens=1, extra={"wants_prompt_logprobs": True})
    scored = sample(engine(llama), again).prompt_logprobs
    assert scored is not None
    assert scored[33:].tolist() == sampled.logprobs.tolist()


def test_every_score_of_a_prompt_comes_in_one_request(llama: BaseModel):
    targets = np.tile(np.array([[5, -1, 9]], np.int64), (39, 1))
    extra = {
        "wants_prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
        "topk_sample_logprobs": 3,
        "prompt_alt_tokens_k": 4,
        "target_prompt_tokens": targets,
    }
    result = sample(engine(llama, prefill_tokens=16), job("r", LONG[:40], num_samples=2, extra=extra))
    assert result.topk_prompt_logprobs is not None
    assert result.topk_prompt_logprobs.token_ids.shape == (40, 2)
    assert result.prompt_alt_tokens is not None
    assert result.prompt_alt_tokens.token_ids.shape == (39, 4)
    assert isinstance(result.target_prompt_logprobs, np.ndarray)
    assert result.target_prompt_logprobs.shape == (39, 3)
    assert (result.target_prompt_logprobs[:, 1] == 0.0).all()
    for sequence in result.sequences:
        assert sequence.topk_logprobs is not None
        assert sequence.topk_logprobs.logprobs.shape == (8, 3)
        assert (sequence.topk_logprobs.logprobs[:, 0] >= sequence.logprobs).all()


def test_samples_differ_and_depend_on_the_seed_and_their_index_alone(llama: BaseModel):
    four = sample(engine(llama), job("a", LONG[:20], num_samples=4, seed=2**64 - 1))
    two = sample(engine(llama), job("b", LONG[:20], num_samples=2, seed=2**64 - 1))
    other = sample(engine(llama), job("c", LONG[:20], num_samples=2, seed=2**63 - 1))
    tokens = [tuple(sequence.tokens.tolist()) for sequence in four.sequences]
    assert len(set(tokens)) == 4
    assert [tuple(sequence.tokens.tolist()) for sequence in two.sequences] == tokens[:2]
    assert tuple(other.sequences[0].tokens.tolist()) != tokens[0]


def test_requests_without_a_seed_differ_from_each_other(llama: BaseModel):
    one = sample(engine(llama), job("a", LONG[:20], seed=None))
    other = sample(engine(llama), job("b", LONG[:20], seed=None))
    assert one.sequences[0].tokens.tolist() != other.sequences[0].tokens.tolist()


def test_every_way_to_greedy_gives_the_same_tokens(llama: BaseModel):
    ways: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}]
    found = {tuple(sample(engine(llama), job("r", LONG[:20], **way)).sequences[0].tokens.tolist()) for way in ways}
    assert len(found) == 1


def test_stops_end_generation_and_stay_in_the_output(llama: BaseModel):
    free = sample(engine(llama), job("r", LONG[:20], max_tokens=12)).sequences[0]
    assert free.stop_reason == "length"
    tokens = free.tokens.tolist()
    at_token = sample(engine(llama), job("r", LONG[:20], max_tokens=12, stop_token_ids=(tokens[4],))).sequences[0]
    end = tokens.index(tokens[4]) + 1
    assert (at_token.stop_reason, at_token.tokens.tolist()) == ("stop", tokens[:end])
    spanning = f"w{tokens[5]} w{tokens[6]}"
    at_text = sample(engine(llama), job("r", LONG[:20], max_tokens=12, stop_strings=(spanning,))).sequences[0]
    assert (at_text.stop_reason, at_text.tokens.tolist()) == ("stop", tokens[:7])


def test_end_of_sequence_counts_only_when_asked_for(llama: BaseModel, monkeypatch: pytest.MonkeyPatch):
    free = sample(engine(llama), job("r", LONG[:20])).sequences[0].tokens.tolist()
    monkeypatch.setattr(llama, "eos_token_ids", frozenset({free[2]}))
    end = free.index(free[2]) + 1
    stopped = sample(engine(llama), job("r", LONG[:20], stops_at_eos=True)).sequences[0]
    assert (stopped.stop_reason, stopped.tokens.tolist()) == ("stop", free[:end])
    assert sample(engine(llama), job("r", LONG[:20])).sequences[0].tokens.tolist() == free


def test_without_max_tokens_generation_fills_what_the_cache_or_context_holds(llama: BaseModel):
    result = sample(engine(llama, num_blocks=3), job("r", LONG[:20], max_tokens=None))
    assert len(result.sequences[0].tokens) == 28
    assert result.sequences[0].stop_reason == "length"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (job("r", LONG, max_tokens=900), "150 tokens and max_tokens is 900.*context length of 1024"),
        (job("r", [1] * 1024, max_tokens=None), "1024 tokens.*context length of 1024"),
        (job("r", []), "prompt of 0 tokens"),
        (job("r", [1], max_tokens=0), "max_tokens 0"),
        (job("r", [1, 515]), r"in \[0, 515\).*1\.\.515"),
        (job("r", [-1]), r"-1"),
        (job("r", [1, 2], extra={"target_prompt_tokens": np.zeros((2, 1), np.int64)}), r"shape \(2, 1\)"),
        (job("r", [1, 2], extra={"target_prompt_tokens": np.array([[515]])}), "515"),
    ],
)
def test_what_can_never_be_served_fails_with_numbers(llama: BaseModel, wanted: SampleJob, message: str):
    failure = outcomes(engine(llama), [wanted])["r"]
    assert isinstance(failure, RequestFailed)
    assert failure.category == "user"
    with pytest.raises(RequestFailed, match=message):
        raise failure


def test_a_prompt_that_can_never_fit_the_cache_fails_instead_of_waiting(llama: BaseModel):
    failure = outcomes(engine(llama, num_blocks=4), [job("r", LONG)])["r"]
    assert isinstance(failure, RequestFailed)
    assert "150 tokens and max_tokens is 8: together they exceed the KV cache of 64 tokens" in str(failure)


def test_a_missing_adapter_fails_its_request_alone(llama: BaseModel):
    sampling = engine(llama)
    jobs = [
        job("a", LONG[:20]),
        job("b", LONG[:20], adapter="missing", num_samples=3),
        job("c", LONG[:20], adapter="1"),
    ]
    results = outcomes(sampling, jobs)
    assert isinstance(results["b"], RequestFailed)
    assert "no adapter 'missing'" in str(results["b"])
    assert_same(results["a"], sample(engine(llama), jobs[0]))
    assert_same(results["c"], sample(engine(llama), jobs[2]))
    assert sampling.stats().kv_blocks_used == 0


def test_weights_that_give_nan_fail_their_request_and_leave_its_neighbours_and_successors_alone(llama: BaseModel):
    broken = adapter_weights(llama, 1)
    for pair in broken.pairs.values():
        pair.b_OR.fill_(float("nan"))
    sampling = engine(llama, num_blocks=12)
    sampling._load_adapter = {"1": broken}.__getitem__
    results = outcomes(sampling, [job("bad", LONG[:50], adapter="1"), job("good", LONG[:50])])
    assert isinstance(results["bad"], RequestFailed)
    assert "not finite" in str(results["bad"])
    assert_same(results["good"], sample(engine(llama), job("good", LONG[:50])))
    # These take over the pages that hold NaN.
    for start in range(4):
        successor = job("next", LONG[start : start + 100], num_samples=2)
        assert_same(sample(sampling, successor), sample(engine(llama), successor))


def test_cancelling_frees_blocks_at_every_stage(llama: BaseModel):
    sampling = engine(llama, prefill_tokens=16, max_sequences=2)
    sampling.add(job("kept", LONG[:20], max_tokens=30))
    for num_steps in range(8):
        sampling.add(job("gone", LONG[:40], num_samples=4, max_tokens=30, adapter="1"))
        for _ in range(num_steps):
            sampling.step()
        sampling.cancel("gone")
        sampling.cancel("gone")
    assert list(drain(sampling)) == ["kept"]
    assert sampling.stats().kv_blocks_used == 0


def test_a_cancelled_refusal_is_not_reported(llama: BaseModel):
    sampling = engine(llama)
    sampling.add(job("r", []))
    sampling.cancel("r")
    assert not sampling.has_work()


def test_300_jobs_finish_on_a_small_cache_and_leave_it_empty(llama: BaseModel):
    sampling = engine(llama, num_blocks=40, max_sequences=16, resident_adapters=3)
    jobs = [
        job(
            f"r{i}",
            LONG[i % 7 : i % 7 + 1 + i % 50],
            num_samples=1 + i % 3,
            adapter=(None, "1", "2", "3", "4")[i % 5],
            max_tokens=1 + i % 9,
            seed=i,
        )
        for i in range(300)
    ]
    results = outcomes(sampling, jobs)
    assert len(results) == 300
    assert all(isinstance(result, SampleResult) for result in results.values())
    assert sampling.stats().kv_blocks_used == 0
    assert sampling._slots.num_pinned == 0


def test_a_hundred_compute_logprobs_requests_take_few_steps(llama: BaseModel):
    sampling = engine(llama, num_blocks=2000, max_sequences=256, prefill_tokens=2048)
    for i in range(100):
        sampling.add(job(f"r{i}", LONG[i % 40 : i % 40 + 40], max_tokens=1, extra={"wants_prompt_logprobs": True}))
    num_steps, num_ended = 0, 0
    while sampling.has_work():
        num_ended += len(sampling.step())
        num_steps += 1
    assert (num_ended, num_steps) == (100, 2)


def test_a_single_request_is_worked_on_at_once_and_counts_its_tokens(llama: BaseModel):
    sampling = engine(llama)
    sampling.add(job("r", LONG[:20], max_tokens=1, num_samples=2))
    assert sampling.step() == []
    assert sampling.stats().num_waiting == 1
    (finished,) = sampling.step()
    assert finished.num_tokens == 22


def test_resting_drops_what_nobody_uses_and_changes_no_number(llama: BaseModel):
    tested = engine(llama)
    tested.rest()
    first = outcomes(tested, [job("a", LONG[:40], adapter="1", seed=3), job("b", LONG[:20], seed=4)])
    tested.rest()
    again = outcomes(tested, [job("a", LONG[:40], adapter="1", seed=3)])
    tested.add(job("c", LONG[:40], adapter="2", seed=5))
    tested.step()
    tested.rest()  # in the middle of a request
    rested, undisturbed = drain(tested), outcomes(engine(llama), [job("c", LONG[:40], adapter="2", seed=5)])
    for got, expected in ((again["a"], first["a"]), (rested["c"], undisturbed["c"])):
        assert isinstance(expected, SampleResult)
        assert_same(got, expected)
