"""Stands for the sampling engine in a worker that only trains."""

from collections.abc import Callable, Sequence

from openrl.errors import RequestFailed
from openrl.sampling.base import FinishedSample, HasNews, SampleJob, SamplingStats, no_news


class AbsentSampling:
    """See SamplingEngine; it has no KV cache, and what comes here by mistake fails."""

    def __init__(self) -> None:
        self.max_sequences = 1
        self._failed: list[FinishedSample] = []

    def add(self, job: SampleJob) -> None:
        why = f"this worker does not sample (worker.role); request {job.request_id!r} came here by mistake"
        self._failed.append(FinishedSample(job.request_id, RequestFailed(why, "server"), 0))

    def cancel(self, request_id: str) -> None:
        self._failed = [each for each in self._failed if each.request_id != request_id]

    def has_work(self) -> bool:
        return bool(self._failed)

    def on_news(self, wake: Callable[[], None]) -> None:
        """Work comes from `add` alone."""

    def step(self, has_news: HasNews = no_news) -> Sequence[FinishedSample]:
        del has_news
        failed, self._failed = self._failed, []
        return failed

    def rest(self) -> None:
        """There is nothing to give back."""

    def stats(self) -> SamplingStats:
        return SamplingStats(0, len(self._failed), 0, 0)
