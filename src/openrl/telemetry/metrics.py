"""Names every Prometheus metric of a server."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counters of one process; label values have few distinct values, so never ids."""

    registry: CollectorRegistry
    http_requests: Counter  # labels: method, route, status
    http_seconds: Histogram  # labels: route
    worker_busy_seconds: Gauge  # labels: worker, side (train, sample); since the worker started
    worker_sequences: Gauge  # labels: worker, state (running, waiting)
    worker_kv_blocks: Gauge  # labels: worker, state (used, total)
    worker_resident_runs: Gauge  # labels: worker
    worker_restarts: Counter  # labels: worker

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def create_metrics() -> Metrics:
    """Fresh metrics in a registry of their own: two servers in one process do not share counts."""
    registry = CollectorRegistry()

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(f"openrl_{name}", text, labels, registry=registry)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"openrl_{name}", text, labels, registry=registry)

    return Metrics(
        registry=registry,
        http_requests=counter("http_requests", "HTTP requests answered.", "method", "route", "status"),
        http_seconds=Histogram(
            "openrl_http_seconds",
            "Time to answer, long polls included.",
            ("route",),
            registry=registry,
            buckets=_SECONDS,
        ),
        worker_busy_seconds=gauge("worker_busy_seconds", "Device time since start.", "worker", "side"),
        worker_sequences=gauge("worker_sequences", "Sequences being sampled.", "worker", "state"),
        worker_kv_blocks=gauge("worker_kv_blocks", "KV cache blocks.", "worker", "state"),
        worker_resident_runs=gauge("worker_resident_runs", "Runs in memory.", "worker"),
        worker_restarts=counter("worker_restarts", "Times a worker process was started again.", "worker"),
    )
