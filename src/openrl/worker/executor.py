"""The compute thread: takes commands as they come and shares the device between both lanes."""

import queue
from collections.abc import Callable
from typing import assert_never

from openrl.model.memory import release_freed_memory
from openrl.rpc.messages import (
    Cancel,
    CloseRun,
    Command,
    Execute,
    OpenRun,
    Sample,
    Shutdown,
    SnapshotRun,
    WorkerStats,
)
from openrl.worker.attempts import attempt
from openrl.worker.open_runs import OpenRuns
from openrl.worker.sampling_lane import SamplingLane
from openrl.worker.timeshare import TimeShare
from openrl.worker.training_lane import TrainingLane

Inbox = queue.SimpleQueue[Command]
IDLE_S = 20.0
"""After this long without work, memory that can be filled again is given back."""


class Executor:
    """Everything runs in the thread that calls `run`; commands come through the inbox from others."""

    def __init__(
        self,
        inbox: Inbox,
        training: TrainingLane,
        sampling: SamplingLane,
        runs: OpenRuns,
        clock: Callable[[], float],
        share: TimeShare,
        idle_s: float = IDLE_S,
    ) -> None:
        self._inbox = inbox
        self._training = training
        self._sampling = sampling
        self._runs = runs
        self._clock = clock
        self._idle_s = idle_s
        self._share = share
        self._is_stopping = False
        self.stats = self._measure()
        """Replaced as a whole after every change, so that any thread may read it."""

    def run(self) -> None:
        """Work until Shutdown came and all that came before it is done; sleeps while there is nothing to do."""
        while True:
            if self.step():
                continue
            if self._is_stopping:
                return
            self._accept(self._first_command())

    def step(self) -> bool:
        """Take what has arrived and give one side its turn; False, at once, where there is nothing to compute."""
        while not self._inbox.empty():
            self._accept(self._inbox.get())
        started = self._clock()
        turn = self._share.decide(started, self._training.tenants(), self._sampling.tenants())
        if turn is not None:
            if turn.side == "training":
                self._training.advance(turn.max_s)
            else:
                self._sampling.advance()
            self._share.record(turn.side, self._clock() - started)
        self.stats = self._measure()  # also without a turn: a cancel or a close may have left nothing to compute
        return turn is not None

    def _first_command(self) -> Command:
        try:
            return self._inbox.get(timeout=self._idle_s)
        except queue.Empty:
            attempt(self._sampling.rest, what="resting")
            release_freed_memory()
            return self._inbox.get()

    def _accept(self, command: Command) -> None:
        match command:
            case OpenRun() | CloseRun() | SnapshotRun() | Execute():
                self._training.push(command)
            case Sample(item):
                self._sampling.add(item)
            case Cancel(request_id):
                self._sampling.cancel(request_id)
            case Shutdown():
                self._is_stopping = True
            case _:
                assert_never(command)

    def _measure(self) -> WorkerStats:
        sampling = self._sampling.stats()
        return WorkerStats(
            busy_train_s=self._training.busy_s,
            busy_sample_s=self._sampling.busy_s,
            num_running_sequences=sampling.num_running,
            num_waiting_sequences=sampling.num_waiting,
            kv_blocks_used=sampling.kv_blocks_used,
            kv_blocks_total=sampling.kv_blocks_total,
            resident_runs=len(self._runs),
        )
