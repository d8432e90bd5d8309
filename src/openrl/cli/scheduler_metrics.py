"""Shows in a scrape what the scheduler has in hand at that moment."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from openrl.scheduler.figures import Figures


class SchedulerCollector(Collector):
    """`figures` gives None while this process stands by: then all but that is absent, as another process shows it."""

    def __init__(self, figures: Callable[[], Figures | None]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What a scrape shows."""
        figures = self._figures()
        yield _gauge("leading", "1 where this process decides.", float(figures is not None))
        if figures is None:
            return
        yield _gauge("workers", "Workers that are connected.", figures.num_workers)
        yield _gauge("live_runs", "Runs that have something waiting or are on a worker.", figures.num_live_runs)
        counts = GaugeMetricFamily("openrl_waiting_requests", "Requests that no worker has.", labels=["kind"])
        ages = GaugeMetricFamily("openrl_waiting_seconds", "Age of the oldest of them.", labels=["kind"])
        for kind, count in figures.num_waiting.items():
            counts.add_metric([kind], count)
            ages.add_metric([kind], figures.oldest_waiting_s[kind])
        yield from (counts, ages)
        yield from _unsaved(figures)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not ask for figures."""
        return iter(())


def _unsaved(figures: Figures) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    ages = GaugeMetricFamily(
        "openrl_worker_unsaved_seconds", "Age of the oldest change in no snapshot.", labels=["worker"]
    )
    replays = GaugeMetricFamily(
        "openrl_worker_unsaved_device_seconds", "Device time to replay the run that has most to replay.",
        labels=["worker"],
    )  # fmt: skip
    for worker_id, unsaved in figures.unsaved.items():
        name = worker_id.partition("#")[0]
        ages.add_metric([name], unsaved.age_s)
        replays.add_metric([name], unsaved.replay_s)
    return ages, replays


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"openrl_{name}", text, value)
