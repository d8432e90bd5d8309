from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from openrl.cli.scheduler_metrics import SchedulerCollector
from openrl.scheduler.figures import Figures, Unsaved


def scrape(figures: Figures | None) -> list[str]:
    registry = CollectorRegistry()
    registry.register(SchedulerCollector(lambda: figures))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_the_leader_shows_what_it_has_in_hand():
    figures = Figures(2, 3, Counter({"sample": 4}), {"sample": 1.5}, {"w0#1": Unsaved(10.0, 2.0)})
    assert scrape(figures) == [
        "openrl_leading 1.0",
        "openrl_workers 2.0",
        "openrl_live_runs 3.0",
        'openrl_waiting_requests{kind="sample"} 4.0',
        'openrl_waiting_seconds{kind="sample"} 1.5',
        'openrl_worker_unsaved_seconds{worker="w0"} 10.0',
        'openrl_worker_unsaved_device_seconds{worker="w0"} 2.0',
    ]


def test_a_standby_shows_only_that_it_is_one():
    assert scrape(None) == ["openrl_leading 0.0"]
