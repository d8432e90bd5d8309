"""Snapshots for vLLM pools, and ways to run jobs through an engine that computes elsewhere."""

import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from openrl.errors import NotFound, RequestFailed
from openrl.model.adapter import HEAD_NAME, AdapterWeights
from openrl.model.base_model import BaseModel
from openrl.model.peft_files import adapter_files
from openrl.protocol.results import SampleResult
from openrl.sampling.base import FinishedSample, SampleJob
from openrl.sampling.vllm import VllmSamplingEngine
from tests.sampling.jobs import adapter_weights

LIMIT_S = 60.0


class Objects:
    """Adapter key "n" holds `body_adapter(model, n)`, "head" one of the output head too; others do not exist."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self.num_reads: Counter[str] = Counter()

    def read(self, key: str) -> dict[str, bytes]:
        self.num_reads[key] += 1
        if key == "head":
            return adapter_files(adapter_weights(self._model, 1), "base")
        if not key.isdigit():
            raise NotFound(f"no adapter {key!r}")
        return adapter_files(body_adapter(self._model, int(key)), "base")


def body_adapter(model: BaseModel, number: int) -> AdapterWeights:
    """An adapter on the linears of the layers."""
    whole = adapter_weights(model, number, rank=4 + number % 3)
    return AdapterWeights(whole.rank, {name: pair for name, pair in whole.pairs.items() if name != HEAD_NAME})


class Runner:
    """Waits for an engine as the worker does: until it says that there is something to hand on."""

    def __init__(self, engine: VllmSamplingEngine) -> None:
        self.engine = engine
        self.finished: dict[str, FinishedSample] = {}
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        engine.on_news(lambda: self._news.put(None))

    def run(self, *jobs: SampleJob) -> list[SampleResult | RequestFailed]:
        """What becomes of the jobs when they are added together."""
        for job in jobs:
            self.engine.add(job)
        return self.wait(*(job.request_id for job in jobs))

    def wait(self, *request_ids: str) -> list[SampleResult | RequestFailed]:
        """Until all these have ended."""
        while any(request_id not in self.finished for request_id in request_ids):
            if self.engine.has_work():
                for each in self.engine.step():
                    assert each.request_id not in self.finished
                    self.finished[each.request_id] = each
            else:
                self._news.get(timeout=LIMIT_S)
        return [self.finished[request_id].result for request_id in request_ids]

    def sample(self, job: SampleJob) -> SampleResult:
        """The result of one job that must not fail."""
        [result] = self.run(job)
        assert isinstance(result, SampleResult), result
        return result


def wait_until(is_so: Callable[[], bool]) -> None:
    """For what happens on the other side of a connection."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def assert_close(got: SampleResult, expected: SampleResult) -> None:
    """Equal tokens; log-probabilities to 1e-4."""
    assert len(got.sequences) == len(expected.sequences)
    for one, other in zip(got.sequences, expected.sequences, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.stop_reason == other.stop_reason
        near(one.logprobs, other.logprobs)
        assert (one.topk_logprobs is None) == (other.topk_logprobs is None)
        if one.topk_logprobs is not None and other.topk_logprobs is not None:
            assert one.topk_logprobs.token_ids.tolist() == other.topk_logprobs.token_ids.tolist()
            near(one.topk_logprobs.logprobs, other.topk_logprobs.logprobs)
    assert (got.prompt_logprobs is None) == (expected.prompt_logprobs is None)
    if got.prompt_logprobs is not None and expected.prompt_logprobs is not None:
        near(got.prompt_logprobs, expected.prompt_logprobs)
    assert (got.topk_prompt_logprobs is None) == (expected.topk_prompt_logprobs is None)
    if got.topk_prompt_logprobs is not None and expected.topk_prompt_logprobs is not None:
        assert got.topk_prompt_logprobs.token_ids.tolist() == expected.topk_prompt_logprobs.token_ids.tolist()
        near(got.topk_prompt_logprobs.logprobs, expected.topk_prompt_logprobs.logprobs)


def near(got: "Sequence[float] | np.ndarray", expected: "Sequence[float] | np.ndarray") -> None:
    """To 1e-4; absent where the other is."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=1e-4, equal_nan=True)
