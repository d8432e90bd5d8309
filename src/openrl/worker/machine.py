"""Puts a worker's parts together: lanes, deliverers and the compute thread's loop."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from openrl.rpc.messages import Report
from openrl.store.base import Blobs
from openrl.telemetry.metrics import create_worker_metrics
from openrl.worker.deliverer import Deliverer
from openrl.worker.engines import EngineTable
from openrl.worker.executor import IDLE_S, Executor, Inbox
from openrl.worker.open_runs import OpenRuns
from openrl.worker.payloads import PayloadReader
from openrl.worker.run_files import RunFiles
from openrl.worker.sampling_lane import SamplingLane
from openrl.worker.timeshare import TimeShare
from openrl.worker.training_lane import TrainingLane
from openrl.worker.training_turns import TrainingTurns
from openrl.worker.work_watch import WorkWatch

_MAX_RESULTS_GROUP = 256


@dataclass(frozen=True, slots=True)
class Deliverers:
    """Two threads' work: results are small and many, saves are large; neither waits for the other."""

    results: Deliverer
    saves: Deliverer

    def close(self) -> None:
        """Let both threads end when they have reported all they have."""
        self.saves.close()
        self.results.close()

    def abandon(self) -> None:
        """Let both threads end after the write under way."""
        self.saves.abandon()
        self.results.abandon()


def create_deliverers(
    blobs: Blobs, report: Callable[[Report], None], sleep: Callable[[float], None] = time.sleep
) -> Deliverers:
    """The deliverers of one worker; `report` is called from their threads."""
    # A save is reported as soon as it is durable, not when the next one is.
    return Deliverers(
        results=Deliverer(blobs, report, sleep, _MAX_RESULTS_GROUP), saves=Deliverer(blobs, report, sleep, 1)
    )


def create_executor(
    engines: EngineTable,
    blobs: Blobs,
    inbox: Inbox,
    deliverers: Deliverers,
    report: Callable[[Report], None],
    clock: Callable[[], float] = time.perf_counter,
    wall_clock: Callable[[], float] = time.time,
    new_attempt: Callable[[], str] = lambda: secrets.token_hex(6),
    share: TimeShare | None = None,
    turns: TrainingTurns | None = None,
    idle_s: float = IDLE_S,
    watch: WorkWatch | None = None,
) -> Executor:
    """The executor over these engines; `report` is called from the thread that runs it."""
    watch = watch or WorkWatch(create_worker_metrics())
    payloads = PayloadReader(blobs)
    runs = OpenRuns(engines)
    training = TrainingLane(
        runs,
        RunFiles(blobs, payloads, runs, wall_clock, new_attempt),
        payloads,
        deliverers.results,
        deliverers.saves,
        report,
        clock,
        turns or TrainingTurns(),
        watch,
    )
    sampling = SamplingLane(engines, payloads, deliverers.results, clock, watch)
    return Executor(inbox, training, sampling, runs, clock, share or TimeShare(), watch, idle_s)
