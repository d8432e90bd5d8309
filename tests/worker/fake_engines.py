"""Engines that count instead of computing."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch

from openrl.catalog import BaseModelInfo
from openrl.config import Config
from openrl.errors import InvalidRequest, NotFound, RequestFailed
from openrl.model.adapter import AdapterWeights, LoraPair
from openrl.protocol.datum import DenseArray, ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult, SampledSequence, SampleResult
from openrl.protocol.runs import RunSpec
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news
from openrl.store.base import Blobs
from openrl.training.base import OptimStep, RunState
from openrl.worker.engines import Engines, EngineTable

BASE_MODEL = "tiny"
A_NAME = "base_model.model.layers.0.q_proj.lora_A.weight"
B_NAME = "base_model.model.layers.0.q_proj.lora_B.weight"


class FakeCopy:
    """A run's number, as a pair of factors."""

    def __init__(self, named: dict[str, torch.Tensor]) -> None:
        self._named = named
        self.adapter = AdapterWeights(4, {"layers.0.q_proj": LoraPair(named[A_NAME], named[B_NAME])})

    def to_host(self) -> RunState:
        return RunState(self._named, {}, {})


class FakeTrainingEngine:
    """A run is one number: gradients count datums, a step subtracts them times the learning rate.

    A loss named "explode" raises, one named "refuse" fails its own job; a step by a rate of 13 breaks.
    """

    def __init__(self, trace: list[str] | None = None) -> None:
        self.weights: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        self.trace: list[str] = [] if trace is None else trace

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        if run.rank > 64:
            raise RuntimeError("out of memory")
        self.weights[run.run_id] = 0.0 if state is None else float(state.adapter[A_NAME][0, 0])
        self.gradients[run.run_id] = 0.0 if state is None or not state.gradients else float(state.gradients["g"])

    def close_run(self, run_id: str) -> None:
        self.weights.pop(run_id, None)

    def export_run(self, run_id: str) -> RunState:
        weights = torch.full((4, 2), self.weights[run_id])
        return RunState(
            adapter={A_NAME: weights, B_NAME: torch.zeros(2, 4)},
            optimizer={"num_steps": torch.tensor(3)},
            gradients={"g": torch.tensor(self.gradients[run_id])},
        )

    def copy_adapter(self, run_id: str) -> "FakeCopy":
        return FakeCopy(self.export_run(run_id).adapter)

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        self.weights[run_id] = float(state.adapter[A_NAME][0, 0])
        self.gradients[run_id] = 0.0

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        results: list[ForwardBackwardResult | RequestFailed] = []
        for job in jobs:
            for _ in job.data:
                self.trace.append("train")
                yield 1
            if job.loss_fn == "explode":
                raise RuntimeError("the device is on fire")
            results.append(self._finish(job))
        return results

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        return [self._step(step) for step in steps]

    def drop_gradients(self, run_id: str) -> None:
        self.gradients[run_id] = 0.0

    def _finish(self, job: ForwardBackwardInput) -> ForwardBackwardResult | RequestFailed:
        if job.loss_fn == "refuse":
            return RequestFailed("datum 0: the loss is not finite", "user")
        if not job.is_forward_only:
            self.gradients[job.run_id] += len(job.data)
        outputs = tuple(_zeros(datum.num_tokens) for datum in job.data)
        return ForwardBackwardResult(outputs, {"loss:sum": float(len(job.data))})

    def _step(self, step: OptimStep) -> dict[str, float] | RequestFailed:
        norm = self.gradients[step.run_id]
        if step.params.learning_rate == 13.0:
            raise RuntimeError("the device is out of memory")
        if norm == 0.0:
            return RequestFailed("nothing to step", "user")
        self.weights[step.run_id] -= step.params.learning_rate * norm
        self.gradients[step.run_id] = 0.0
        return {"grad_norm": norm}


class FakeSamplingEngine:
    """Says token 7 `max_tokens` times, one a step; a prompt that starts with 13 breaks the step."""

    def __init__(self, trace: list[str] | None = None) -> None:
        self.jobs: dict[str, tuple[SampleJob, int]] = {}
        self.trace: list[str] = [] if trace is None else trace

    def add(self, job: SampleJob) -> None:
        if job.sampler.adapter_key == "missing":
            raise NotFound("object 'missing' does not exist")
        if job.prompt.size == 0:
            raise InvalidRequest("the prompt is empty")
        self.jobs[job.request_id] = (job, 0)

    def cancel(self, request_id: str) -> None:
        self.jobs.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self.jobs)

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        del has_news
        self.trace.append("sample")
        finished: list[FinishedSample] = []
        for request_id, (job, num_tokens) in list(self.jobs.items()):
            if job.prompt[0] == 13:
                raise RuntimeError("bad luck")
            self.jobs[request_id] = (job, num_tokens + 1)
            if num_tokens + 1 >= (job.options.max_tokens or 1):
                del self.jobs[request_id]
                finished.append(FinishedSample(request_id, _result(job, num_tokens + 1), num_tokens + 1))
        return finished

    def on_news(self, wake: Callable[[], None]) -> None:
        pass

    def rest(self) -> None:
        self.trace.append("rest")

    def stats(self) -> SamplingStats:
        return SamplingStats(len(self.jobs), 0, len(self.jobs), 100)


def _zeros(num_tokens: int) -> dict[str, DenseArray]:
    return {"logprobs": np.zeros(num_tokens, np.float32)}


def _result(job: SampleJob, num_tokens: int) -> SampleResult:
    tokens, logprobs = np.full(num_tokens, 7, np.int32), np.full(num_tokens, -0.5, np.float32)
    return SampleResult(tuple(SampledSequence("length", tokens, logprobs) for _ in range(job.num_samples)))


def fake_engines(config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
    """An engine factory; a model directory that lacks config.json is refused as the real one does."""
    path = config.models[0].path if config.models else Path("/models/tiny")
    if config.models and not (path / "config.json").is_file():
        raise InvalidRequest(f"model {BASE_MODEL!r}: {path} is not a Hugging Face directory")
    info = BaseModelInfo(BASE_MODEL, path, "TinyForCausalLM", 512, 256)
    return {BASE_MODEL: Engines(info, FakeTrainingEngine(), FakeSamplingEngine(), 512, 32)}
