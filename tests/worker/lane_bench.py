"""A training lane over an engine that takes time on a clock of its own."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrl.errors import RequestFailed
from openrl.protocol.datum import ForwardBackwardInput
from openrl.protocol.results import ForwardBackwardResult
from openrl.telemetry.metrics import create_worker_metrics
from openrl.training.base import OptimStep
from openrl.worker.open_runs import OpenRuns
from openrl.worker.payloads import PayloadReader
from openrl.worker.run_files import RunFiles
from openrl.worker.training_lane import TrainingLane
from openrl.worker.training_turns import TrainingTurns
from openrl.worker.work_watch import WorkWatch
from tests.worker.fake_engines import FakeTrainingEngine
from tests.worker.rig import Rig

TOKEN_S = 50e-6
STEP_S = 0.02


@dataclass
class Clock:
    now: float = 0.0


class TimedTrainingEngine(FakeTrainingEngine):
    """Takes TOKEN_S for every row, and STEP_S for an optimizer step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.sizes: list[int] = []
        self.passes: list[str] = []  # the run of each micro-batch

    def forward_backward(
        self, jobs: Sequence[ForwardBackwardInput], max_rows: Callable[[], int] | None = None
    ) -> Generator[int, None, list[ForwardBackwardResult | RequestFailed]]:
        assert max_rows is not None
        left = sum(datum.num_tokens for job in jobs for datum in job.data)
        while left:
            rows = min(max_rows(), left)
            left -= rows
            self.sizes.append(rows)
            self.passes.append(jobs[0].run_id)
            self.clock.now += rows * TOKEN_S
            yield rows
            if jobs[0].loss_fn == "explode":
                raise RuntimeError("the device is on fire")
        return [self._finish(job) for job in jobs]

    def optim_step(self, steps: Sequence[OptimStep]) -> list[dict[str, float] | RequestFailed]:
        self.sizes.append(len(steps))
        self.clock.now += len(steps) * STEP_S
        return super().optim_step(steps)


@dataclass
class Bench:
    rig: Rig
    clock: Clock
    engine: TimedTrainingEngine
    lane: TrainingLane

    def drain(self, max_s: float) -> list[float]:
        """Seconds of each turn until the lane has nothing left."""
        turns: list[float] = []
        while self.lane.tenants():
            before = self.clock.now
            self.lane.advance(max_s)
            turns.append(self.clock.now - before)
        return turns


def create_bench(root: Path) -> Bench:
    rig, clock = Rig(root), Clock()
    engine = TimedTrainingEngine(clock)
    rig.training = engine
    engines = rig.engines(max_pass_tokens=8192)
    payloads, runs = PayloadReader(rig.blobs), OpenRuns(engines)
    files = RunFiles(rig.blobs, payloads, runs, lambda: 0.0, lambda: "0")
    deliverers = rig.deliverers
    lane = TrainingLane(
        runs,
        files,
        payloads,
        deliverers.results,
        deliverers.saves,
        rig.reports.append,
        lambda: clock.now,
        TrainingTurns(),
        WorkWatch(create_worker_metrics()),
    )
    return Bench(rig, clock, engine, lane)
