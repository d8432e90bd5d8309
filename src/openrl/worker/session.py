"""A worker's time with one scheduler: what that one commands is run and reported; nothing of it stays."""

import asyncio
import math
import queue
from collections.abc import Callable
from concurrent.futures import Executor as Threads

from openrl.errors import WorkerLost
from openrl.rpc.messages import Command, Report, SetDraining, WorkerDraining, WorkerLeaving, WorkerReady
from openrl.rpc.transport import Connection
from openrl.store.base import Blobs
from openrl.worker.engines import EngineTable
from openrl.worker.executor import Inbox
from openrl.worker.machine import create_deliverers, create_executor
from openrl.worker.settings import WorkerSettings
from openrl.worker.timeshare import TimeShare
from openrl.worker.training_turns import TrainingTurns
from openrl.worker.work_watch import WorkWatch

_HEARTBEAT_S = 1.0


class Session:
    """Three tasks (receive, send, beat) around three threads (compute, results, saves)."""

    def __init__(
        self,
        settings: WorkerSettings,
        engines: EngineTable,
        blobs: Blobs,
        compute: Threads,
        connection: Connection,
        watch: WorkWatch,
        on_draining: Callable[[bool], None] = lambda _: None,
        *,
        is_draining: bool = False,
    ) -> None:
        """`on_draining` hears what the scheduler wants; `is_draining`: the worker was drained before."""
        self._settings = settings
        self._connection = connection
        self._on_draining = on_draining
        self._compute = compute  # one thread: the engines are used from no other
        self._inbox: Inbox = queue.SimpleQueue()
        self._outbox: asyncio.Queue[Report | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(message: Report) -> None:
            loop.call_soon_threadsafe(self._outbox.put_nowait, message)

        config = settings.config
        tenant_shares = config.scheduler.tenant_shares
        share = TimeShare(config.worker.max_slice_s or math.inf, config.worker.max_training_lag_s, tenant_shares)
        turns = TrainingTurns(tenant_shares)
        self._deliverers = create_deliverers(blobs, report)
        self._executor = create_executor(
            engines, blobs, self._inbox, self._deliverers, report, share=share, turns=turns, watch=watch
        )
        self._outbox.put_nowait(_ready(settings, engines, is_draining=is_draining))

    async def run(self) -> None:
        """Returns when Shutdown came and all before it is done and reported.

        Raises an ExceptionGroup when something broke: of WorkerLost alone where it was the connection. In any case the
        engines then hold no run and no sample, and nothing more is reported.
        """
        computing = asyncio.get_running_loop().run_in_executor(self._compute, self._executor.run)
        try:
            await self._work(computing)
        except BaseException:
            self._inbox.put(None)
            self._deliverers.abandon()
            async with asyncio.timeout(self._settings.config.scheduler.worker_stuck_s):
                await asyncio.wait([computing])
            raise
        finally:
            await self._connection.close()

    def drain(self, *, stays: bool = False) -> None:
        """Ask the scheduler to take back what can go elsewhere; it answers with Shutdown, unless the worker stays."""
        self._outbox.put_nowait(WorkerDraining(stays))

    def step_age_s(self) -> float:
        """How long the compute thread has been in its present step; from any thread."""
        return self._executor.stats().step_age_s

    async def _work(self, computing: "asyncio.Future[None]") -> None:
        async with asyncio.TaskGroup() as group:
            endless = [group.create_task(self._receive()), group.create_task(self._beat())]
            sending = group.create_task(self._send())
            delivering = [
                group.create_task(asyncio.to_thread(each.run))
                for each in (self._deliverers.results, self._deliverers.saves)
            ]
            await asyncio.shield(computing)
            self._deliverers.close()
            await asyncio.wait(delivering)
            for task in endless:
                task.cancel()
            self._outbox.put_nowait(WorkerLeaving())
            self._outbox.put_nowait(None)
            await sending

    async def _receive(self) -> None:
        silence_s = self._settings.config.rpc.silence_s
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    command = await self._connection.receive()
            except TimeoutError as error:
                raise WorkerLost(f"the scheduler has said nothing for {silence_s:.0f} s") from error
            assert isinstance(command, Command), "the scheduler sends commands only"
            if isinstance(command, SetDraining):
                self._on_draining(command.is_draining)
            self._inbox.put(command)

    async def _send(self) -> None:
        while (message := await self._outbox.get()) is not None:
            await self._connection.send(message)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            self._outbox.put_nowait(self._executor.stats())


def _ready(settings: WorkerSettings, engines: EngineTable, *, is_draining: bool) -> WorkerReady:
    return WorkerReady(
        worker_id=settings.worker_id,
        base_models=tuple(engines),
        max_pass_tokens=max(each.max_pass_tokens for each in engines.values()),
        max_sequences=sum(each.max_sequences for each in engines.values()),
        pool=settings.config.worker.pool,
        role=settings.config.worker.role,
        is_draining=is_draining,
        knows_draining=True,
    )
