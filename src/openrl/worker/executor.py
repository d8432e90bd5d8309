"""The compute thread: takes commands as they come and shares the device between both lanes."""

import queue
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from openrl.model.memory import release_freed_memory
from openrl.rpc.messages import (
    Cancel,
    CloseRun,
    Command,
    Execute,
    OpenRun,
    Ping,
    Sample,
    SetDraining,
    SetTenantShares,
    Shutdown,
    SnapshotRun,
    WorkerStats,
)
from openrl.worker.attempts import attempt
from openrl.worker.open_runs import OpenRuns
from openrl.worker.sampling_lane import SamplingLane
from openrl.worker.timeshare import TimeShare
from openrl.worker.training_lane import TrainingLane
from openrl.worker.work_watch import WorkWatch

Inbox = queue.SimpleQueue[Command | None]
"""None: nobody wants what was commanded so far; drop it and end."""
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
        watch: WorkWatch,
        idle_s: float = IDLE_S,
    ) -> None:
        self._watch = watch
        self._inbox = inbox
        self._training = training
        self._sampling = sampling
        self._runs = runs
        self._clock = clock
        self._idle_s = idle_s
        self._share = share
        self._is_stopping = False
        self._is_abandoned = False
        sampling.on_news(lambda: inbox.put(Ping()))
        self._step_began_at: float | None = None  # None while waiting for commands
        self._stats = self._measure()  # replaced as a whole after every change, so that any thread may read it

    def run(self) -> None:
        """Work until Shutdown came and all that came before it is done; sleeps while there is nothing to do.

        When abandoned it returns after the step under way: the engines then hold nothing of what was commanded.
        """
        while not self._is_abandoned:
            self._step_began_at = self._clock()
            if self.step():
                continue
            if self._is_stopping and not self._sampling.has_jobs():
                return
            if not self._is_abandoned:
                self._accept(self._first_command())
        self._sampling.drop()
        self._training.drop()

    def stats(self) -> WorkerStats:
        """What the heartbeat says; from any thread."""
        began_at = self._step_began_at
        return self._stats if began_at is None else replace(self._stats, step_age_s=self._clock() - began_at)

    def step(self) -> bool:
        """Take what has arrived and give one side its turn; False, at once, where there is nothing to compute."""
        while not self._inbox.empty():
            self._accept(self._inbox.get())
        if self._is_abandoned:
            return False
        started = self._clock()
        turn = self._share.decide(started, self._training.tenants(), self._sampling.tenants())
        if turn is not None:
            if turn.side == "training":
                self._training.advance(turn.max_s)
            else:
                self._sampling.advance(self._has_news)
            seconds = self._clock() - started
            self._share.record(turn.side, seconds)
            self._watch.turned(turn.side, seconds)
        self._stats = self._measure()  # also without a turn: a cancel or a close may have left nothing to compute
        return turn is not None

    def _has_news(self) -> bool:
        return not self._inbox.empty()

    def _first_command(self) -> Command | None:
        self._step_began_at = None
        try:
            return self._inbox.get(timeout=self._idle_s)
        except queue.Empty:
            attempt(self._sampling.rest, what="resting")
            release_freed_memory()
            return self._inbox.get()

    def _accept(self, command: Command | None) -> None:
        match command:
            case OpenRun() | CloseRun() | SnapshotRun() | Execute():
                self._training.push(command)
            case Sample(item):
                self._sampling.add(item)
            case Cancel(request_id):
                self._sampling.cancel(request_id)
            case SetTenantShares(tenant_shares):
                self._share.set_shares(tenant_shares)
                self._training.set_shares(tenant_shares)
            case Ping() | SetDraining():
                pass
            case Shutdown():
                self._is_stopping = True
            case None:
                self._is_abandoned = True
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
