"""Runs the scheduler's state: feeds it what happens, does what it decides."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from openrl.config import Config
from openrl.errors import WorkerLost
from openrl.rpc.messages import (
    Command,
    ExecuteDone,
    RunLost,
    RunSnapshotted,
    SampleDone,
    Shutdown,
    WorkerLeaving,
    WorkerReady,
    WorkerStats,
)
from openrl.rpc.transport import Connection
from openrl.scheduler.actions import Action, SendCommand
from openrl.scheduler.events import (
    Event,
    RequestCancelled,
    RequestsArrived,
    SessionClosed,
    Tick,
    WorkerGone,
    WorkerJoined,
    WorkerReported,
)
from openrl.scheduler.housekeeping import Housekeeping
from openrl.scheduler.state import SchedulerState
from openrl.scheduler.store_writer import StoreWriter
from openrl.store.base import Blobs, Store

TICK_S = 5.0
SWEEP_S = 60.0
DRAIN_S = 30.0
SILENCE_S = 300.0
"""A worker reports about once a second; one that says nothing for this long is given up."""
_log = structlog.get_logger(__name__)


class Scheduler:
    """One per installation is active. Built inside the event loop that runs it; not thread-safe.

    Workers come in through `serve_worker` (hand it to `rpc.transport.serve_workers`) or as
    connections given to `run`.
    """

    def __init__(self, store: Store, blobs: Blobs, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._state = SchedulerState(config.scheduler.max_replay_s, config.scheduler.tenant_shares)
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._outboxes: dict[str, asyncio.Queue[Command]] = {}
        self._stats: dict[str, WorkerStats] = {}
        self._num_joined = 0
        self._is_draining = False
        self._is_stopped = False
        self._all_gone = asyncio.Event()
        self._session_ended = asyncio.Event()
        self._writer = StoreWriter(store, blobs, clock, self._put, config.store.expired_run_retention_s)
        self._housekeeping = Housekeeping(store, blobs, config.gateway.session_timeout_s, self._put)

    async def run(self, workers: Sequence[Connection] = ()) -> None:
        """Schedule until cancelled, or until `stop` has drained the workers."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._writer.run()),
                group.create_task(self._read_requests()),
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
        """Let the workers finish what they have, at most DRAIN_S; then `run` returns.

        What is not finished stays in the store and continues when a scheduler runs again.
        """
        self._is_draining = True
        for outbox in self._outboxes.values():
            outbox.put_nowait(Shutdown())
        if self._outboxes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._all_gone.wait()
        self._is_stopped = True
        self._wake.set()

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
                await self._receive_all(worker_id, connection)
                sending.cancel()
        finally:
            self._worker_left(worker_id)
            await connection.close()

    def request_cancelled(self, request_id: str) -> None:
        """Nobody waits for this request any more."""
        self._put(RequestCancelled(request_id))

    def session_ended(self, session_id: str) -> None:
        """The session has ended in the store: drop its samples, save and close its runs.

        Without this call the next sweep does the same.
        """
        self._put(SessionClosed(session_id, ()))
        self._session_ended.set()

    def is_ready(self) -> bool:
        """Whether a worker serves every configured base model."""
        served = self._state.base_models()
        return bool(served) and served >= {model.name for model in self._config.models}

    def worker_stats(self) -> dict[str, WorkerStats]:
        """The latest heartbeat of each connected worker."""
        return dict(self._stats)

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    async def _decide(self) -> None:
        while not self._is_stopped:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            for event in merge_arrivals(events):
                for action in self._state.handle(event, self._clock()):
                    self._act(action)

    def _act(self, action: Action) -> None:
        if not isinstance(action, SendCommand):
            self._writer.put(action)
        elif action.worker_id in self._outboxes and not self._is_draining:
            # A worker that has just left is not here; its WorkerGone is on the way.
            self._outboxes[action.worker_id].put_nowait(action.command)

    async def _read_requests(self) -> None:
        async for rows in self._store.new_requests():
            self._put(RequestsArrived(tuple(rows)))

    async def _receive_all(self, worker_id: str, connection: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = await connection.receive()
            except (WorkerLost, TimeoutError) as error:
                _log.warning("worker lost", worker_id=worker_id, reason=str(error) or f"silent for {SILENCE_S:.0f} s")
                return
            match message:
                case WorkerStats():
                    self._stats[worker_id] = message
                case WorkerLeaving():
                    _log.info("worker left", worker_id=worker_id)
                    return
                case ExecuteDone() | SampleDone() | RunSnapshotted() | RunLost():
                    self._put(WorkerReported(worker_id, message))
                case _:
                    _log.warning("unexpected message", worker_id=worker_id, type=type(message).__name__)

    def _worker_left(self, worker_id: str) -> None:
        del self._outboxes[worker_id]
        self._stats.pop(worker_id, None)
        self._put(WorkerGone(worker_id))
        if not self._outboxes:
            self._all_gone.set()

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
        started_at = self._clock()
        gateway, store = self._config.gateway, self._config.store
        while True:
            self._session_ended.set()
            # Heartbeats could not arrive while we were down: give clients their full time to come back.
            if self._clock() - started_at >= gateway.session_timeout_s:
                await self._housekeeping.expire_sessions(self._clock())
            await self._housekeeping.delete_expired_checkpoints(self._clock())
            await self._housekeeping.free_unused_objects(self._clock(), store)
            await self._housekeeping.prune(self._clock() - store.result_retention_s)
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
