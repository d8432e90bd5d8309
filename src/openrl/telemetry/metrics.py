"""Names every Prometheus metric of a server."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openrl.config import TelemetryConfig
from openrl.telemetry.recent import RecentCounter

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counters of one process; label values have few distinct values, ids only in counters with a bound."""

    registry: CollectorRegistry
    http_requests: Counter  # labels: method, route, status
    http_seconds: Histogram  # labels: route
    rejected_requests: Counter  # labels: code
    store_commit_seconds: Histogram
    queue_wait_seconds: Histogram  # labels: kind
    requests: Counter  # labels: kind, outcome (done, failed_user, failed_server, cancelled)
    gpu_seconds: RecentCounter  # labels: tenant, kind
    run_gpu_seconds: RecentCounter  # labels: tenant, run, kind
    tokens: RecentCounter  # labels: tenant, kind
    replayed_requests: Counter
    replay_seconds: Counter
    worker_busy_seconds: Gauge  # labels: worker, side (train, sample); since the worker started
    worker_sequences: Gauge  # labels: worker, state (running, waiting)
    worker_kv_blocks: Gauge  # labels: worker, state (used, total)
    worker_resident_runs: Gauge  # labels: worker
    worker_step_age_seconds: Gauge  # labels: worker
    worker_restarts: Counter  # labels: worker
    pool_wanted_workers: Gauge  # labels: pool
    pool_waiting_requests: Gauge  # labels: pool
    pool_waiting_seconds: Gauge  # labels: pool; age of the oldest
    pool_workers: Gauge  # labels: pool

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """What a worker process alone knows."""

    registry: CollectorRegistry
    turn_seconds: Histogram  # labels: side (training, sampling)
    pass_requests: Histogram  # labels: kind

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)


def create_metrics(config: TelemetryConfig | None = None) -> Metrics:
    """Fresh metrics in a registry of their own: two servers in one process do not share counts."""
    registry = CollectorRegistry()
    bounds = config or TelemetryConfig()

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(f"openrl_{name}", text, labels, registry=registry)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"openrl_{name}", text, labels, registry=registry)

    def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"openrl_{name}", text, labels, registry=registry, buckets=buckets)

    def recent(name: str, text: str, owner_labels: tuple[str, ...], max_owners: int) -> RecentCounter:
        made = RecentCounter(f"openrl_{name}", text, owner_labels, "kind", max_owners)
        registry.register(made)
        return made

    return Metrics(
        registry=registry,
        http_requests=counter("http_requests", "HTTP requests answered.", "method", "route", "status"),
        http_seconds=histogram("http_seconds", "Time to answer, long polls included.", "route"),
        rejected_requests=counter("rejected_requests", "HTTP requests refused, by error code.", "code"),
        store_commit_seconds=histogram("store_commit_seconds", "Time until a group of writes was durable."),
        queue_wait_seconds=histogram(
            "queue_wait_seconds", "Time from acceptance until a worker was told.", "kind", buckets=_WAITS
        ),
        requests=counter("requests", "Requests that ended.", "kind", "outcome"),
        gpu_seconds=recent("gpu_seconds", "Device time of requests that ended.", ("tenant",), bounds.tenant_series),
        run_gpu_seconds=recent("run_gpu_seconds", "The same by open run.", ("tenant", "run"), bounds.run_series),
        tokens=recent("tokens", "Tokens of requests that ended.", ("tenant",), bounds.tenant_series),
        replayed_requests=counter("replayed_requests", "Requests run again to rebuild a run."),
        replay_seconds=counter("replay_seconds", "Device time of replays."),
        worker_busy_seconds=gauge("worker_busy_seconds", "Device time since start.", "worker", "side"),
        worker_sequences=gauge("worker_sequences", "Sequences being sampled.", "worker", "state"),
        worker_kv_blocks=gauge("worker_kv_blocks", "KV cache blocks.", "worker", "state"),
        worker_resident_runs=gauge("worker_resident_runs", "Runs in memory.", "worker"),
        worker_step_age_seconds=gauge("worker_step_age_seconds", "Age of the compute thread's step.", "worker"),
        worker_restarts=counter("worker_restarts", "Times a worker process was started again.", "worker"),
        pool_wanted_workers=gauge("pool_wanted_workers", "Workers that a pool should have.", "pool"),
        pool_waiting_requests=gauge("pool_waiting_requests", "Requests that have not ended.", "pool"),
        pool_waiting_seconds=gauge("pool_waiting_seconds", "Age of the oldest of them.", "pool"),
        pool_workers=gauge("pool_workers", "Workers that take work.", "pool"),
    )


def create_worker_metrics() -> WorkerMetrics:
    """For the registry that a worker process serves."""
    registry = CollectorRegistry()
    return WorkerMetrics(
        registry=registry,
        turn_seconds=Histogram(
            "openrl_turn_seconds",
            "Time that one side held the device.",
            ("side",),
            registry=registry,
            buckets=_SECONDS,
        ),
        pass_requests=Histogram(
            "openrl_pass_requests",
            "Requests that ran together as one command.",
            ("kind",),
            registry=registry,
            buckets=_REQUESTS,
        ),
    )
