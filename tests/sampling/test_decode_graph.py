"""Steps over fixed buffers give the tokens of the engine's own steps; here without graphs, on the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openrl.model.base_model import BaseModel
from openrl.protocol.results import SampleResult
from openrl.sampling import decode_graph
from openrl.sampling.choice import choose_plain
from openrl.sampling.decode_adapters import SegmentAdapters
from openrl.sampling.decode_graph import Bucket, GraphLoop, Parts, bucket_of
from openrl.sampling.engine import PagedSamplingEngine
from openrl.sampling.kv_cache import KVCache
from openrl.sampling.paged_attention import PagedAttention, Span
from tests.sampling.jobs import drain, job, outcomes
from tests.sampling.test_burst import PROMPT, bursting


class PlainDecodeAttention:
    """What sampling.decode_attention computes, row by row, through the attention of the step-by-step path."""

    def __init__(self, cache: KVCache, num_heads: int, tables_BP: Tensor, lengths_B: Tensor) -> None:
        rows = [row for row, length in enumerate(lengths_B.tolist()) if length]
        self._rows = torch.tensor(rows, dtype=torch.int64)
        spans = [
            Span(index, int(lengths_B[row]) - 1, 1, tuple(tables_BP[row, : -(-int(lengths_B[row]) // 16)].tolist()))
            for index, row in enumerate(rows)
        ]
        self._paged = PagedAttention(cache, spans, num_heads)

    def attend(
        self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: int | None
    ) -> Tensor:
        out_TNH = torch.zeros_like(q_TNH)
        if len(self._rows):
            rows = self._rows
            out_TNH[rows] = self._paged.attend(layer, q_TNH[rows], k_TKH[rows], v_TKH[rows], scale, window)
        return out_TNH


class PlainAttentionOver:
    def __init__(self, cache: KVCache, num_heads: int) -> None:
        self._cache = cache
        self._num_heads = num_heads

    def __call__(
        self, tables_BP: Tensor, lengths_B: Tensor, num_splits: int, *, are_slices: bool
    ) -> PlainDecodeAttention:
        del are_slices  # it writes what is new before any row looks
        assert num_splits == 1
        return PlainDecodeAttention(self._cache, self._num_heads, tables_BP, lengths_B)

    def splits_for(self, longest: int) -> int:
        return 1


def with_buffers(model: BaseModel, num_steps: int, **settings: Any) -> PagedSamplingEngine:
    """An engine whose sequences decode through the buffers."""
    sampling = bursting(model, num_steps, **settings)
    attention = PlainAttentionOver(sampling._cache, model.num_heads)
    parts = Parts(attention, SegmentAdapters(sampling._bank), choose_plain, sampling.max_sequences, max_pages=64)
    sampling._loop = GraphLoop(model, parts)
    return sampling


JOBS = [
    job("a", PROMPT[:30], max_tokens=40, num_samples=3, temperature=0.7),
    job("b", PROMPT[:9], max_tokens=3, adapter="1"),
    job("c", PROMPT[:50], max_tokens=25, adapter="2", num_samples=2),
    job("d", PROMPT[:17], max_tokens=33, temperature=0.0),
    job("e", PROMPT[:20], max_tokens=20, adapter="1", stop_token_ids=tuple(range(0, 500, 7))),
]


@pytest.mark.parametrize("extra", [[], [job("f", PROMPT[:12], max_tokens=15, top_p=0.7, repetition_penalty=1.2)]])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("settings", [{}, {"num_blocks": 24, "max_sequences": 5}])
def test_tokens_are_those_of_single_steps(
    tiny_model: Callable[[str], BaseModel], family: str, settings: dict[str, Any], extra: list[Any]
):
    model = tiny_model(family)
    expected = outcomes(bursting(model, 1), [*JOBS, *extra])
    found = outcomes(with_buffers(model, 7, **settings), [*JOBS, *extra])
    for request_id, result in expected.items():
        other = found[request_id]
        assert isinstance(result, SampleResult)
        assert isinstance(other, SampleResult)
        for one, two in zip(result.sequences, other.sequences, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist()
            assert np.abs(one.logprobs - two.logprobs).max() < 1e-4


class CountingLoop(GraphLoop):
    """Counts steps, and the rows of those that are prompts'."""

    num_steps = 0
    slice_rows: tuple[int, ...] = ()

    def _step(self, bucket: Bucket) -> None:
        self.num_steps += 1
        self.slice_rows += (bucket.num_rows,) if bucket.are_slices else ()
        super()._step(bucket)


def counting(model: BaseModel, num_steps: int, **settings: Any) -> tuple[PagedSamplingEngine, CountingLoop]:
    sampling = with_buffers(model, num_steps, **settings)
    loop = sampling._loop
    assert isinstance(loop, GraphLoop)
    sampling._loop = counter = CountingLoop(model, loop._parts)
    return sampling, counter


@pytest.mark.parametrize("asked", [1, 2, 7])
def test_news_end_a_burst_after_the_step_under_way_and_the_one_queued(llama: BaseModel, asked: int):
    expected = outcomes(bursting(llama, 1), JOBS[:1])["a"]
    sampling, loop = counting(llama, 40)
    sampling.add(JOBS[0])
    while sampling.stats().num_waiting:
        sampling.step()
    sequences = list(sampling._batcher.running)
    generated = [sequence.num_generated for sequence in sequences]
    before, seen = loop.num_steps, [0]

    def has_news() -> bool:
        seen[0] += 1
        assert loop.num_steps - before == seen[0], "asked once before each further step"
        return seen[0] == asked

    assert not sampling.step(has_news)
    assert loop.num_steps - before == asked
    assert [sequence.num_generated - asked for sequence in sequences] == generated, "no step is lost"
    found = drain(sampling)["a"]
    assert isinstance(found, SampleResult)
    assert isinstance(expected, SampleResult)
    for one, two in zip(expected.sequences, found.sequences, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()


def test_a_step_is_looked_at_while_the_next_one_is_under_way(llama: BaseModel):
    sampling, loop = counting(llama, 40)
    sampling.add(job("a", PROMPT[:30], max_tokens=12))
    sampling.step()
    sampling.step()  # how long a step takes is known after one
    (sequence,) = sampling._batcher.running
    before, ahead = loop.num_steps, list[int]()

    def has_news() -> bool:
        ahead.append(loop.num_steps - before - (sequence.num_generated - 2))
        return False

    sampling.step(has_news)
    assert ahead == [1] * 9


def test_a_new_prompt_has_its_token_before_the_others_go_on_and_they_go_on_next(llama: BaseModel):
    sampling, loop = counting(llama, 40)
    sampling.add(job("old", PROMPT[:30], max_tokens=60))
    sampling.step()
    (old,) = sampling._batcher.running
    for index in range(4):
        sampling.add(job(f"new{index}", PROMPT[index : index + 9], max_tokens=1, adapter="1"))
        num_generated = old.num_generated
        (finished,) = sampling.step()
        assert finished.request_id == f"new{index}"
        assert old.num_generated == num_generated
        sampling.add(job(f"next{index}", PROMPT[index : index + 20], max_tokens=1))
        assert not sampling.step()
        assert old.num_generated == num_generated + 1, "prompts and decoding take turns"
        assert [each.request_id for each in sampling.step()] == [f"next{index}"]
        assert not sampling.step(lambda: True)
    assert len(loop.slice_rows) == 9


def test_long_prompts_are_left_to_the_model_runner(llama: BaseModel, monkeypatch: pytest.MonkeyPatch):
    jobs = [job("long", [1 + i % 400 for i in range(300)]), job("short", PROMPT[:60])]
    for limits, expected in (({}, (64,)), ({"MAX_SLICE_KEYS": 60 * 60 - 1}, ())):
        for name, value in limits.items():
            monkeypatch.setattr(decode_graph, name, value)
        sampling, loop = counting(llama, 5)
        for each in jobs:
            outcomes(sampling, [each])
        assert loop.slice_rows == expected


def test_buckets_hold_what_they_are_for():
    for num_rows in range(1, 300):
        bucket = bucket_of(num_rows, 300)
        assert bucket >= num_rows
        assert bucket % 8 == 0
    assert bucket_of(256, 256) == 256
    assert bucket_of(33, 256) == 48
