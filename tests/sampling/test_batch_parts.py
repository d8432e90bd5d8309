"""What traced requests are told of the batch that they were in."""

from collections.abc import Iterator
from itertools import count

import pytest

from openrl.model.base_model import BaseModel
from openrl.sampling.base import BatchPart, FinishedSample, SampleJob
from openrl.sampling.batch_parts import MAX_SHARED
from openrl.sampling.engine import PagedSamplingEngine
from tests.sampling.jobs import engine, job
from tests.telemetry.fake_tracer import trace_context


def traced(number: int, prompt: list[int], tenant: str = "", **options: object) -> SampleJob:
    extra = {"trace_context": trace_context(number), "tenant_id": tenant}
    return job(f"r{number}", prompt, extra=extra, **options)  # pyright: ignore[reportArgumentType]


def run(engine: PagedSamplingEngine) -> Iterator[FinishedSample]:
    while engine.has_work():
        yield from engine.step()


def parts(engine: PagedSamplingEngine, *jobs: SampleJob) -> dict[str, BatchPart | None]:
    for each in jobs:
        engine.add(each)
    return {ended.request_id: ended.part for ended in run(engine)}


# Two tenants, an adapter each; the third is not traced and counts all the same.
def test_requests_in_one_batch_know_its_size_and_each_other(llama: BaseModel):
    said = parts(
        engine(llama),
        traced(1, [5, 6, 7], "alice", adapter="1", max_tokens=4),
        traced(2, [5, 6, 7, 8], "bob", adapter="2", max_tokens=6),
        job("r3", [9, 9], max_tokens=6),
    )
    first, second = said["r1"], said["r2"]
    assert said["r3"] is None
    assert first is not None
    assert second is not None
    assert (first.num_prefill_tokens, first.num_decode_steps) == (3, 3)
    assert (second.num_prefill_tokens, second.num_decode_steps) == (4, 5)
    assert first.max_sequences == second.max_sequences == 3
    assert first.max_adapters == second.max_adapters == 2
    assert first.shared_with == (trace_context(2),)
    assert second.shared_with == (trace_context(1),)
    assert 0.0 < first.seconds <= second.seconds


def test_samples_of_one_request_compute_their_prompt_once_and_decode_together(llama: BaseModel):
    part = parts(engine(llama), traced(1, [5, 6, 7], num_samples=3, max_tokens=5))["r1"]
    assert part is not None
    assert (part.num_prefill_tokens, part.max_sequences, part.max_adapters) == (3, 3, 0)
    assert part.num_decode_steps == 5  # the others fork a step later


@pytest.mark.parametrize("burst_s", [0.0, 10.0])
def test_decode_steps_are_counted_within_bursts_too(llama: BaseModel, burst_s: float):
    said = parts(engine(llama, burst_s=burst_s), traced(1, [5, 6, 7], max_tokens=40), traced(2, [5, 6], max_tokens=9))
    assert [part.num_decode_steps for part in said.values() if part is not None] == [8, 39]


def test_one_that_comes_after_another_has_ended_does_not_know_it(llama: BaseModel):
    shared = engine(llama)
    numbers = count(1)
    for _ in range(2):
        number = next(numbers)
        part = parts(shared, traced(number, [5, 6, 7]))[f"r{number}"]
        assert part is not None
        assert part.shared_with == ()


def test_a_cancelled_request_leaves_nothing_behind(llama: BaseModel):
    shared = engine(llama)
    shared.add(traced(1, [5, 6, 7], max_tokens=50))
    shared.step()
    shared.cancel("r1")
    part = parts(shared, traced(2, [5, 6, 7]))["r2"]
    assert part is not None
    assert part.shared_with == ()


def test_the_others_are_remembered_up_to_a_bound(llama: BaseModel):
    shared = engine(llama, max_sequences=MAX_SHARED + 8)
    said = parts(shared, *(traced(number, [5, number], max_tokens=3) for number in range(MAX_SHARED + 8)))
    assert {len(part.shared_with) for part in said.values() if part is not None} == {MAX_SHARED}
