"""Bursts give what single steps give, and last about as long as they may."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrl.errors import RequestFailed
from openrl.model.base_model import BaseModel
from openrl.protocol.results import SampleResult
from openrl.sampling.base import SampleJob
from openrl.sampling.burst import MAX_STEPS, BurstLength
from openrl.sampling.decode_loop import Burst, GoesOn, SteppedLoop, StepTokens
from openrl.sampling.engine import PagedSamplingEngine
from tests.sampling.jobs import adapter_weights, drain, engine, job, outcomes

PROMPT = [(7 * i + 3) % 500 for i in range(120)]


def bursting(model: BaseModel, num_steps: int, **settings: Any) -> PagedSamplingEngine:
    """An engine that decodes so many steps at once wherever it may."""
    sampling = engine(model, **settings)
    sampling._lengths = BurstLength(math.inf if num_steps > 1 else 0.0, num_steps)
    return sampling


def assert_same(one: SampleResult | RequestFailed, other: SampleResult | RequestFailed) -> None:
    assert isinstance(one, SampleResult)
    assert isinstance(other, SampleResult)
    for a, b in zip(one.sequences, other.sequences, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.logprobs.tolist() == b.logprobs.tolist()
        assert a.stop_reason == b.stop_reason


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.6, "stop_token_ids": tuple(range(0, 500, 9))},
    {"stop_strings": ("1 w", "w33")},
    {"top_k": 5, "max_tokens": 6},
    {"top_k": 1},
    {"repetition_penalty": 1.3, "max_tokens": 4},
]


@st.composite
def jobs(draw: st.DrawFn) -> list[SampleJob]:
    made: list[SampleJob] = []
    for index in range(draw(st.integers(1, 6))):
        options: dict[str, Any] = {
            "max_tokens": draw(st.integers(1, 40)),
            "seed": index,
            **draw(st.sampled_from(OPTIONS)),
        }
        length = draw(st.integers(1, 60))
        extra = {"tenant_id": draw(st.sampled_from("ab")), "wants_prompt_logprobs": draw(st.booleans())}
        adapter = draw(st.sampled_from([None, "1", "2"]))
        num_samples = draw(st.integers(1, 3))
        made.append(job(f"r{index}", PROMPT[:length], num_samples=num_samples, adapter=adapter, extra=extra, **options))
    return made


@settings(max_examples=40, deadline=None)
@given(
    wanted=jobs(),
    num_steps=st.integers(2, 20),
    num_blocks=st.sampled_from([9, 16, 256]),
    max_sequences=st.sampled_from([2, 32]),
    gone=st.integers(0, 5),
    gone_after=st.integers(0, 6),
)
def test_bursts_change_no_bit(
    llama: BaseModel,
    wanted: list[SampleJob],
    num_steps: int,
    num_blocks: int,
    max_sequences: int,
    gone: int,
    gone_after: int,
):
    slow = outcomes(bursting(llama, 1), wanted)
    fast = bursting(llama, num_steps, num_blocks=num_blocks, max_sequences=max_sequences, prefill_tokens=64)
    for each in wanted:
        fast.add(each)
    early = [finished for _ in range(gone_after) if fast.has_work() for finished in fast.step()]
    fast.cancel(f"r{gone}")
    found = {finished.request_id: finished.result for finished in early} | drain(fast)
    assert set(found) | {f"r{gone}"} >= set(slow)
    for request_id, result in found.items():
        assert_same(result, slow[request_id])
    assert fast.stats().kv_blocks_used == 0
    assert fast._slots.num_pinned == 0


class CountingLoop(SteppedLoop):
    """Notes the sizes of bursts."""

    def __init__(self, sampling: PagedSamplingEngine) -> None:
        super().__init__(sampling._runner)
        self.bursts: list[tuple[int, int]] = []

    def run(self, burst: Burst, goes_on: GoesOn) -> Iterator[StepTokens]:
        self.bursts.append(burst.uniform_KB.shape)
        return super().run(burst, goes_on)


def sizes_of(sampling: PagedSamplingEngine, wanted: Sequence[SampleJob]) -> list[tuple[int, int]]:
    loop = sampling._loop = CountingLoop(sampling)
    outcomes(sampling, wanted)
    return loop.bursts


def test_what_decodes_plainly_runs_in_bursts_and_no_longer_than_it_needs(llama: BaseModel):
    wanted = [job(f"r{i}", PROMPT[: 10 + i], max_tokens=12 + i) for i in range(3)]
    assert sizes_of(bursting(llama, 5), wanted) == [(5, 3), (5, 3), (2, 2)]  # the first step alone, to be timed


def test_a_row_that_is_not_plain_makes_all_go_step_by_step(llama: BaseModel):
    wanted = [job("a", PROMPT[:10], max_tokens=12), job("b", PROMPT[:10], max_tokens=6, top_p=0.5)]
    assert sizes_of(bursting(llama, 16), wanted) == [(5, 1)]


def test_a_burst_takes_no_more_blocks_than_there_are(llama: BaseModel):
    wanted = [job(f"r{i}", PROMPT[i : i + 15], max_tokens=40) for i in range(2)]
    sizes = sizes_of(bursting(llama, 32, num_blocks=5), wanted)
    assert 1 < sizes[0][0] < 32
    assert len(sizes) > 1


def test_prefixes_are_shared_up_to_what_was_kept_of_a_burst(llama: BaseModel):
    sampling = bursting(llama, 30)
    first = outcomes(sampling, [job("a", PROMPT[:16], max_tokens=34)])["a"]
    assert isinstance(first, SampleResult)
    tokens = first.sequences[0].tokens.tolist()
    following = [*PROMPT[:16], *tokens, 5, 6, 7]
    again = outcomes(sampling, [job("b", following, max_tokens=3)])["b"]
    assert isinstance(again, SampleResult)
    assert again.prompt_cache_hit_tokens == 48
    assert_same(again, outcomes(bursting(llama, 1), [job("b", following, max_tokens=3)])["b"])


def test_weights_that_give_nan_fail_their_request_alone_in_a_burst(llama: BaseModel):
    broken = adapter_weights(llama, 1)
    for pair in broken.pairs.values():
        pair.b_OR.fill_(float("nan"))
    sampling = bursting(llama, 8)
    results = outcomes(sampling, [job("good", PROMPT[:40], max_tokens=20), job("b", PROMPT[:9], adapter="2")])
    sampling._load_adapter = {"1": broken}.__getitem__
    for name, adapter in (("bad", "1"), ("next", None)):
        results |= outcomes(sampling, [job(name, PROMPT[:40], adapter=adapter, max_tokens=20)])
    assert isinstance(results["bad"], RequestFailed)
    assert_same(results["next"], results["good"])


def test_lengths_fit_the_time_and_what_is_left():
    lengths = BurstLength(0.05)
    assert lengths.num_steps([100, 9], math.inf, are_waiting=False) == 1  # nothing is known yet
    lengths.record(1, 0.005)
    assert lengths.num_steps([100, 9], math.inf, are_waiting=False) == 40
    assert lengths.num_steps([7, 3], math.inf, are_waiting=False) == 7
    assert lengths.num_steps([100, 9], 0.02, are_waiting=False) == 4
    assert lengths.num_steps([100, 9], -1.0, are_waiting=False) == 1


def test_bursts_are_short_and_end_with_the_first_sequence_while_others_wait():
    lengths = BurstLength(0.4)
    lengths.record(2, 0.01)
    assert lengths.num_steps([100, 90], math.inf, are_waiting=True) == 20
    assert lengths.num_steps([100, 3], math.inf, are_waiting=True) == 3
    lengths.record(1, 10.0)  # a compiler was at work
    assert lengths.num_steps([100, 90], math.inf, are_waiting=True) == pytest.approx(15, abs=1)


def test_the_answer_of_a_request_that_ended_waits_no_longer_than_it_may(llama: BaseModel):
    sampling = bursting(llama, 30)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    outcomes(sampling, [job("first", PROMPT[:9], max_tokens=2)])
    sampling._clock, sampling._lengths = clock, BurstLength(4.5)
    sampling._lengths.record(1, 0.1)
    sampling.add(job("long", PROMPT[:20], max_tokens=40))
    sampling.add(job("short", PROMPT[:30], max_tokens=3))
    assert not sampling.step()
    loop = sampling._loop = CountingLoop(sampling)
    assert [finished.request_id for finished in sampling.step()] == ["short"]
    assert loop.bursts[0][0] > 10
    (long,) = sampling._batcher.running
    assert long.num_generated == 1 + 2 + 5, "asked at 0, 1, 2, 3 and 4 s after the end"


def test_no_burst_is_longer_than_its_buffers():
    for burst_s, expected in ((math.inf, MAX_STEPS), (0.0, 1)):
        lengths = BurstLength(burst_s)
        lengths.record(1, 0.001)
        assert lengths.num_steps([1000], math.inf, are_waiting=False) == expected
