"""Runs the scheduler's state: feeds it what happens, does what it decides."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence

import structlog

from openrl.config import Config
from openrl.errors import WorkerLost
from openrl.rpc.messages import (
    Command,
    Execute,
    ExecuteDone,
    Ping,
    RunLost,
    RunSnapshotted,
    SampleDone,
    Shutdown,
    WorkerDraining,
    WorkerLeaving,
    WorkerReady,
    WorkerStats,
)
from openrl.rpc.transport import Connection
from openrl.scheduler.actions import Action, SendCommand
from openrl.scheduler.duty import DutyMeter
from openrl.scheduler.events import (
    DrainAsked,
    Event,
    PauseOver,
    RequestCancelled,
    RequestsArrived,
    SessionClosed,
    Tick,
    WorkerGone,
    WorkerJoined,
    WorkerReported,
)
from openrl.scheduler.figures import Figures
from openrl.scheduler.housekeeping import Housekeeping
from openrl.scheduler.quota_feed import QuotaFeed
from openrl.scheduler.state import SchedulerState
from openrl.scheduler.store_writer import StoreWriter, retried
from openrl.scheduler.watch import Watch
from openrl.store.base import Blobs, Store
from openrl.store.cluster import Load, SchedulerStatus
from openrl.store.patient_clock import PatientClock
from openrl.store.quotas import default_limits
from openrl.telemetry.metrics import create_metrics

TICK_S = 5.0
STATUS_S = 1.0
SWEEP_S = 60.0
_PINGS_IN_SILENCE = 3
_SHORTEST_PAUSE_S = 0.02
_log = structlog.get_logger(__name__)


class Scheduler:
    """One per installation is active. Built inside the event loop that runs it; not thread-safe.

    Workers come in through `serve_worker` (hand it to `rpc.transport.serve_workers`) or as
    connections given to `run`.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        config: Config,
        clock: Callable[[], float] = time.time,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch or Watch(create_metrics(), clock)
        self._store = store
        self._patient_clock = PatientClock(clock, time.monotonic)
        self._config = config
        self._clock = clock
        limits = default_limits(config.quotas)
        self._state = SchedulerState(config.scheduler.max_replay_s, config.scheduler.tenant_shares, limits)
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._outboxes: dict[str, asyncio.Queue[Command]] = {}
        self._executing: dict[int, str] = {}  # the workers that hold these Executes
        self._stats: dict[str, WorkerStats] = {}
        self._duty = DutyMeter()
        self._num_joined = 0
        self._is_draining = False
        self._is_stopped = False
        self._all_gone = asyncio.Event()
        self._none_executing = asyncio.Event()
        self._fleet_changed = asyncio.Event()
        self._session_ended = asyncio.Event()
        self._writer = StoreWriter(store, blobs, clock, self._put, config.store.expired_run_retention_s)
        self._quota_feed = QuotaFeed(store, clock, self._put)
        self._waking: asyncio.TimerHandle | None = None
        self._housekeeping = Housekeeping(store, blobs, config.gateway.session_timeout_s, self._put)

    async def run(self, workers: Sequence[Connection] = ()) -> None:
        """Schedule until cancelled, or until `stop` has drained the workers."""
        await self._quota_feed.start()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._writer.run()),
                group.create_task(self._read_requests()),
                group.create_task(self._read_signals()),
                group.create_task(self._quota_feed.run()),
                group.create_task(self._publish_status()),
                group.create_task(self._tick()),
                group.create_task(self._sweep()),
                group.create_task(self._close_sessions()),
                *(group.create_task(self.serve_worker(worker)) for worker in workers),
            ]
            await self._decide()
            await self._writer.flush()
            for task in tasks:
                task.cancel()

    async def stop(self) -> None:
        """Let the workers finish what they have and end, within `scheduler.drain_s`; then `run` returns.

        What is not finished stays in the store and continues when a scheduler runs again.
        """
        self._is_draining = True
        for outbox in self._outboxes.values():
            outbox.put_nowait(Shutdown())
        if self._outboxes:
            await self._wait_to_drain(self._all_gone)
        self._end()

    async def hand_over(self) -> None:
        """As `stop`, for workers that go on under another scheduler: only their training passes are waited for.

        Samples that they had are drawn again there, the same.
        """
        self._is_draining = True
        if self._executing:
            await self._wait_to_drain(self._none_executing)
        self._end()

    async def serve_worker(self, connection: Connection) -> None:
        """Use a worker until its connection ends."""
        try:
            ready = await connection.receive()
            while not isinstance(ready, WorkerReady):
                ready = await connection.receive()
        except WorkerLost:
            return
        self._num_joined += 1
        worker_id = f"{ready.worker_id}#{self._num_joined}"  # one that comes back is another worker
        outbox: asyncio.Queue[Command] = asyncio.Queue()
        self._outboxes[worker_id] = outbox
        self._put(WorkerJoined(worker_id, ready))
        _log.info("worker joined", worker_id=worker_id, base_models=ready.base_models)
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_send_all(connection, outbox))
                pinging = group.create_task(self._ping(outbox))
                await self._receive_all(worker_id, connection)
                sending.cancel()
                pinging.cancel()
        finally:
            self._worker_left(worker_id)
            await connection.close()

    def is_ready(self) -> bool:
        """Whether a worker serves every configured base model."""
        served = self._state.base_models()
        return bool(served) and served >= {model.name for model in self._config.models}

    def worker_stats(self) -> dict[str, WorkerStats]:
        """The latest heartbeat of each connected worker."""
        return dict(self._stats)

    def figures(self) -> Figures:
        """How much there is of what, at this moment."""
        return self._state.figures(time.monotonic(), self._clock())

    def status(self) -> SchedulerStatus:
        """What gateways and operators want to know."""
        models = tuple(sorted(self._state.base_models()))
        load = Load(self._duty.duty(), self._state.queue_wait_s(time.monotonic(), self._clock()))
        return SchedulerStatus(models, self._state.pauses(), len(self._outboxes), self._state.workers(), load)

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    def _end(self) -> None:
        self._is_stopped = True
        self._wake.set()

    async def _wait_to_drain(self, drained: asyncio.Event) -> None:
        drained.clear()  # it may have been so before
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.scheduler.drain_s):
                await drained.wait()

    async def _decide(self) -> None:
        while not self._is_stopped:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            for event in merge_arrivals(events):
                self._watch.saw(event)
                for action in self._state.handle(event, time.monotonic(), self._clock()):
                    self._act(action)
                if isinstance(event, WorkerJoined | WorkerGone):
                    self._fleet_changed.set()
            self._wake_later()

    def _wake_later(self) -> None:
        """Come back when a pause ends by itself."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        at = self._state.wakes_at()
        if math.isfinite(at):
            wait_s = min(max(at - time.monotonic(), _SHORTEST_PAUSE_S), TICK_S)
            self._waking = asyncio.get_running_loop().call_later(wait_s, self._put, PauseOver())

    def _act(self, action: Action) -> None:
        self._watch.did(action)
        if not isinstance(action, SendCommand):
            self._writer.put(action)
        elif action.worker_id in self._outboxes and not self._is_draining:
            # A worker that has just left is not here; its WorkerGone is on the way.
            self._outboxes[action.worker_id].put_nowait(action.command)
            if isinstance(action.command, Execute):
                self._executing[action.command.work_id] = action.worker_id

    async def _read_requests(self) -> None:
        async for rows in self._store.new_requests():
            self._put(RequestsArrived(tuple(rows)))

    async def _read_signals(self) -> None:
        async for signal in self._store.cluster.signals():
            match signal.kind:
                case "cancel":
                    self._put(RequestCancelled(signal.subject))
                case "session_ended":  # one that is lost is found by the next sweep
                    self._put(SessionClosed(signal.subject, ()))
                    self._session_ended.set()
                case "drain_worker" | "resume_worker":
                    self._put(DrainAsked(signal.subject, signal.kind == "drain_worker"))
                case "quotas_changed":
                    self._quota_feed.changed()
                case _:
                    pass

    async def _publish_status(self) -> None:
        published: SchedulerStatus | None = None
        while True:
            status = self.status()
            if status != published:
                await retried(lambda status=status: self._store.cluster.publish_status(status))
                published = status
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_S):
                    await self._fleet_changed.wait()
            self._fleet_changed.clear()

    async def _receive_all(self, worker_id: str, connection: Connection) -> None:
        """Until the worker is gone, or is given up because it, or its compute thread, no longer moves."""
        config = self._config.scheduler
        while True:
            try:
                async with asyncio.timeout(config.worker_silence_s):
                    message = await connection.receive()
            except (WorkerLost, TimeoutError) as error:
                reason = str(error) or f"silent for {config.worker_silence_s:.0f} s"
                _log.warning("worker lost", worker_id=worker_id, reason=reason)
                return
            match message:
                case WorkerStats(step_age_s=step_age_s) if step_age_s > config.worker_stuck_s:
                    reason = f"it has been in one step for {step_age_s:.0f} s"
                    _log.error("worker given up", worker_id=worker_id, reason=reason)
                    return
                case WorkerStats():
                    self._stats[worker_id] = message
                    self._duty.saw(worker_id, message, time.monotonic())
                case WorkerLeaving():
                    _log.info("worker left", worker_id=worker_id)
                    return
                case ExecuteDone() | SampleDone() | RunSnapshotted() | RunLost() | WorkerDraining():
                    if isinstance(message, ExecuteDone):
                        self._no_longer_executing([message.work_id])
                    self._put(WorkerReported(worker_id, message))
                case _:
                    _log.warning("unexpected message", worker_id=worker_id, type=type(message).__name__)

    async def _ping(self, outbox: asyncio.Queue[Command]) -> None:
        while True:
            await asyncio.sleep(self._config.rpc.silence_s / _PINGS_IN_SILENCE)
            outbox.put_nowait(Ping())

    def _worker_left(self, worker_id: str) -> None:
        del self._outboxes[worker_id]
        self._stats.pop(worker_id, None)
        self._duty.left(worker_id)
        self._no_longer_executing([work_id for work_id, holder in self._executing.items() if holder == worker_id])
        self._put(WorkerGone(worker_id))
        if not self._outboxes:
            self._all_gone.set()

    def _no_longer_executing(self, work_ids: Sequence[int]) -> None:
        for work_id in work_ids:
            self._executing.pop(work_id, None)
        if not self._executing:
            self._none_executing.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._put(Tick())

    async def _close_sessions(self) -> None:
        while True:
            await self._session_ended.wait()
            self._session_ended.clear()
            await self._housekeeping.close_ended_sessions()

    async def _sweep(self) -> None:
        started_at = time.monotonic()
        gateway, store = self._config.gateway, self._config.store
        while True:
            self._session_ended.set()
            # Heartbeats could not arrive while we were down: give clients their full time to come back.
            if time.monotonic() - started_at >= gateway.session_timeout_s:
                await self._housekeeping.expire_sessions(self._clock())
            now = self._patient_clock()
            await self._housekeeping.delete_expired_checkpoints(now)
            await self._housekeeping.free_unused_objects(now, store)
            await self._housekeeping.prune(now - store.result_retention_s)
            await asyncio.sleep(SWEEP_S)


async def _send_all(connection: Connection, outbox: asyncio.Queue[Command]) -> None:
    """Send commands as they come; a broken connection is noticed by the receiving side."""
    with contextlib.suppress(WorkerLost):
        while True:
            await connection.send(await outbox.get())


def merge_arrivals(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbouring arrivals joined, so that they can share a pass."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, RequestsArrived) and isinstance(last, RequestsArrived):
            merged[-1] = RequestsArrived(last.requests + event.requests)
        else:
            merged.append(event)
    return merged
