"""Shows the heartbeats of workers in the metrics of the process that they are connected to."""

import asyncio
from collections.abc import Callable, Mapping

from openrl.rpc.messages import WorkerStats
from openrl.telemetry.metrics import Metrics

_STATS_S = 1.0


async def copy_worker_stats(worker_stats: Callable[[], Mapping[str, WorkerStats]], metrics: Metrics) -> None:
    """For ever; workers that have left are shown no more."""
    while True:
        for gauge in (
            metrics.worker_busy_seconds,
            metrics.worker_sequences,
            metrics.worker_kv_blocks,
            metrics.worker_resident_runs,
            metrics.worker_step_age_seconds,
        ):
            gauge.clear()
        for worker, stats in worker_stats().items():
            name = worker.partition("#")[0]  # the scheduler numbers every start of a worker
            metrics.worker_busy_seconds.labels(name, "train").set(stats.busy_train_s)
            metrics.worker_busy_seconds.labels(name, "sample").set(stats.busy_sample_s)
            metrics.worker_sequences.labels(name, "running").set(stats.num_running_sequences)
            metrics.worker_sequences.labels(name, "waiting").set(stats.num_waiting_sequences)
            metrics.worker_kv_blocks.labels(name, "used").set(stats.kv_blocks_used)
            metrics.worker_kv_blocks.labels(name, "total").set(stats.kv_blocks_total)
            metrics.worker_resident_runs.labels(name).set(stats.resident_runs)
            metrics.worker_step_age_seconds.labels(name).set(stats.step_age_s)
        await asyncio.sleep(_STATS_S)
