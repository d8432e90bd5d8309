"""A worker process whose engines finish everything at once: what is left is gateway, store and scheduler."""

import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from openrl.catalog import Catalog
from openrl.config import Config
from openrl.errors import RequestFailed
from openrl.model.adapter import AdapterWeights
from openrl.protocol.datum import DenseArray, ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult, SampledSequence, SampleResult
from openrl.protocol.runs import RunSpec
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news
from openrl.store.base import Blobs
from openrl.training.base import OptimStep, RunState
from openrl.worker.engines import Engines, EngineTable
from openrl.worker.process import main


class NoopCopy:
    """Of a run that has no weights."""

    adapter = AdapterWeights(1, {})

    def to_host(self) -> RunState:
        return RunState({}, {}, {})


class NoopTraining:
    """Zero log-probabilities for every token."""

    def open_run(self, run: RunSpec, state: RunState | None) -> None:
        del run, state

    def close_run(self, run_id: str) -> None:
        del run_id

    def export_run(self, run_id: str) -> RunState:
        del run_id
        return RunState({}, {}, {})

    def copy_adapter(self, run_id: str) -> NoopCopy:
        del run_id
        return NoopCopy()

    def load_weights(self, run_id: str, state: RunState, with_optimizer: bool) -> None:
        del run_id, state, with_optimizer

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        del max_rows
        yield 1
        return [self._result(job) for job in jobs]

    def _result(self, job: ForwardBackwardInput) -> ForwardBackwardResult:
        return ForwardBackwardResult(tuple(_zeros(datum.num_tokens) for datum in job.data), {"loss:sum": 0.0})

    def drop_gradients(self, run_id: str) -> None:
        del run_id

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        return [{} for _ in steps]


def _zeros(num_tokens: int) -> dict[str, DenseArray]:
    return {"logprobs": np.zeros(num_tokens, np.float32)}


class NoopSampling:
    """One token a sample, at the next step."""

    def __init__(self) -> None:
        self._jobs: list[SampleJob] = []

    def add(self, job: SampleJob) -> None:
        self._jobs.append(job)

    def cancel(self, request_id: str) -> None:
        self._jobs = [job for job in self._jobs if job.request_id != request_id]

    def has_work(self) -> bool:
        return bool(self._jobs)

    def on_news(self, wake: Callable[[], None]) -> None:
        pass

    def rest(self) -> None:
        pass

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        del has_news
        jobs, self._jobs = self._jobs, []
        token, logprob = np.array([7], np.int32), np.array([-1.0], np.float32)
        return [
            FinishedSample(
                job.request_id, SampleResult((SampledSequence("length", token, logprob),) * job.num_samples), 1
            )
            for job in jobs
        ]

    def stats(self) -> SamplingStats:
        return SamplingStats(len(self._jobs), 0, 0, 1)


def noop_engines(config: Config, blobs: Blobs, scratch_dir: Path) -> EngineTable:
    """Engines for every model of the configuration."""
    del blobs, scratch_dir
    models = Catalog.load(config.models).all()
    return {model.name: Engines(model, NoopTraining(), NoopSampling(), 8192, 4096) for model in models}


if __name__ == "__main__":
    sys.exit(main(noop_engines))
